"""Writes docs/reference anew: from the stages' parameters, the results' docstrings and the compiled pipeline.

`make reference` runs it; a test compares what it would write with what is there.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

import must
from must.api import results
from must.api.functions import ERRORS, NOT_STAGES, function_at_must
from must.api.stages import STAGES
from must.base.parameters import parameters_of
from must_pipeline.cli import COMMANDS
from must_pipeline.files import CLUSTER, COMPILED

FOLDER = Path(__file__).resolve().parent / "reference"
MADE = "<!-- Made by `make reference`; change the parameters' own texts instead. -->\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
    print(measure())


def measure() -> Path:
    """Writes what docs/architecture.md says of itself under "Is it so?"."""
    sys.path.insert(0, str(FOLDER.parents[1]))
    from tests.test_architecture import MEASURED, measured

    page = FOLDER.with_name("architecture.md")
    page.write_text(MEASURED.sub(lambda _: measured(), page.read_text()))
    return page


def pages() -> dict[str, str]:
    return {"commands.md": commands(), "python.md": python(), "pipeline.md": pipeline(), "cluster.md": cluster()}


def commands() -> str:
    """Every stage with its flags, in the groups of its --help."""
    out = [MADE, "# Commands\n"]
    out.append(
        "`must COMMAND --help` says the same. Any parameter can stand in a YAML file given with `--config`; flags win. "
        "The functions of `import must` take the same names with `_` for `-`.\n"
    )
    out.append(" · ".join(f"[{name}](#must-{name})" for name in STAGES) + "\n")
    for name, stage in STAGES.items():
        out.append(f"## must {name}\n")
        out.append(stage.help + "\n")
        if stage.config.example:
            out.append(block(inspect.cleandoc(stage.config.example), "text"))
        kinds = get_type_hints(stage.config)
        out.append("| parameter | default | |\n|---|---|---|")
        group = ""
        for one in parameters_of(stage.config):
            if one.metadata.get("group") and one.metadata["group"] != group:
                group = one.metadata["group"]
                out.append(f"| *{cell(group)}* | | |")
            shown = default(one) + (", or the preset's" if one.name in stage.config.by_preset else "")
            out.append(f"| {flag(one)} | {shown} | {cell(one.metadata['help'])}{choices(kinds[one.name])} |")
        out.append("")
    return "\n".join(out)


def flag(one: Field[Any]) -> str:
    word = one.metadata.get("metavar") or ""
    if one.metadata.get("positional"):
        return f"`{word or one.name.upper()}`"
    return f"`--{one.name.replace('_', '-')}`" + (f" {cell(word)}" if word else "")


def default(one: Field[Any]) -> str:
    value = one.default
    if one.default_factory is not MISSING:
        value = one.default_factory()
    if value is MISSING:
        return "required"
    if isinstance(value, dict):
        value = ",".join(f"{name}={number:g}" for name, number in value.items())
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return "" if value in ("", None) else f"`{value}`"


def choices(kind: Any) -> str:
    options = [kind] if get_origin(kind) is Literal else []
    options += [one for one in get_args(kind) if get_origin(kind) in (Union, UnionType) and get_origin(one) is Literal]
    values = [str(value) for one in options for value in get_args(one)]
    return f" ({', '.join(f'`{value}`' for value in values)})" if values else ""


def python() -> str:
    """The functions at `must` and what they return."""
    out = [MADE, "# Python: functions and results\n"]
    out.append("How they are used is in [From Python](../python.md). All parameters are keywords.\n")
    out.append("| function | does | returns |\n|---|---|---|")
    for name, stage in STAGES.items():
        returns = "Adapted" if stage.python else inspect.signature(function_at_must(name)).return_annotation.__name__
        own = getattr(getattr(results, returns, None), "__module__", "") == results.__name__
        link = f"[`{returns}`](#{returns.lower()})" if own else f"`{returns}`"
        out.append(f"| [`must.{name}`](commands.md#must-{name}) | {cell(stage.help)} | {link} |")
    out += [f"| `must.{name}` | {cell(first_line(getattr(must, name)))} | |" for name in NOT_STAGES]
    out += [f"| `must.{name}` | {cell(first_line(getattr(must, name)))} | an exception |" for name in ERRORS]
    out.append("")
    for name, kind in vars(results).items():
        if not is_dataclass(kind) or kind.__module__ != results.__name__:
            continue
        out.append(f"## {name}\n")
        out.append(arguments(inspect.cleandoc(kind.__doc__ or "")) + "\n")
        out.append("| field | type |\n|---|---|")
        out += [f"| `{one.name}` | `{cell(str(one.type))}` |" for one in fields(kind)]
        properties = [n for n, value in vars(kind).items() if isinstance(value, property) and not n.startswith("_")]
        out += [f"| `{n}` | {cell(first_line(getattr(kind, n).fget))} |" for n in properties]
        out.append("")
    return "\n".join(out)


def first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def arguments(doc: str) -> str:
    """A docstring's headings in bold and its indented lines as a list."""
    doc = re.sub(r"^(Args|Attributes|Raises|Returns):$", r"\n**\1**\n", doc, flags=re.MULTILINE)
    return re.sub(r"^    (\w[\w, ]*): ", r"- `\1`: ", doc, flags=re.MULTILINE)


def pipeline() -> str:
    """The commands of must-pipeline, and the parameters of a run."""
    spec = next(yaml.safe_load_all(COMPILED.read_text()))
    out = [MADE, "# The pipeline's commands and parameters\n"]
    out += ["| command | does |\n|---|---|"]
    out += [f"| `must-pipeline {name}` | {text} |" for name, (_, text) in COMMANDS.items()]
    out.append(
        "\nEach has `--help`. In a checkout `python pipeline/compile.py` and its neighbours are the same commands.\n"
    )
    out.append("## A run's parameters\n")
    out.append("The lines of `run.yaml`, and of `parameters:` in a schedule.\n")
    out.append("| parameter | type | default | |\n|---|---|---|---|")
    for name, one in spec["root"]["inputDefinitions"]["parameters"].items():
        value = one.get("defaultValue")
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float):
            value = f"{value:g}"
        shown = "required" if not one.get("isOptional") else "" if value in ("", {}, None) else f"`{value}`"
        kind = one["parameterType"].lower().removeprefix("number_")
        out.append(f"| `{name}` | {kind} | {shown} | {cell(one.get('description', ''))} |")
    return "\n".join(out) + "\n"


def cluster() -> str:
    out = [MADE, "# cluster.yaml\n", "Every key with its default. A file needs only the keys that differ.\n"]
    return "\n".join([*out, block(CLUSTER.read_text().strip(), "yaml")])


def block(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
