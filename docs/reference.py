"""Writes docs/reference from the stages' parameters, the results' docstrings and the compiled pipeline, and the stub.

`make reference` runs it; a test compares its output with the files.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

import must
from must.api import results
from must.api.cli import describe_preset
from must.api.run import make_function
from must.base.parameters import list_parameters
from must.table import COMMANDS, ERRORS, NOT_STAGES
from must_pipeline import cli

FOLDER = Path(__file__).resolve().parent / "reference"
PIPELINE = FOLDER.parents[1] / "pipeline"
MADE = "<!-- Made by `make reference`; change the parameters' own texts instead. -->\n"


def main() -> None:
    sys.path.insert(0, str(FOLDER.parents[1]))
    from docs.stub import STUB, stub

    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
    STUB.write_text(stub())
    print(STUB)


def pages() -> dict[str, str]:
    return {"commands.md": commands(), "python.md": python(), "pipeline.md": pipeline()}


def commands() -> str:
    """Every stage with its flags, in the groups of its --help; a flag that several have alike is described once."""
    out = [MADE, "# Commands\n"]
    out.append(
        "`must COMMAND --help` says the same. Any parameter can stand in a YAML file given with `--config`; flags win. "
        "The functions of `import must` take the same names with `_` for `-`. In brackets: the default.\n"
    )
    out.append(" · ".join(f"[{name}](#must-{name})" for name in COMMANDS) + "\n")
    listed = {name: list_parameters(stage.config) for name, stage in COMMANDS.items()}
    of_train = {field.name for field in listed["train"]}
    listed["plan"] = [field for field in listed["plan"] if field.name not in of_train]  # it has those of train, too
    lines = {name: [(field, describe(name, field)) for field in shown] for name, shown in listed.items()}
    times = Counter(line for rows in lines.values() for _, line in rows)
    out.append("## Flags of several commands\n")
    out += [line for line, count in times.items() if count > 1]
    out.append("")
    for name, stage in COMMANDS.items():
        out.append(f"## must {name}\n")
        out.append(stage.help + "\n")
        if stage.config.example:
            out.append(block(inspect.cleandoc(stage.config.example), "text"))
        groups: dict[str, list[str]] = {}
        group = ""
        for field, line in lines[name]:
            group = field.metadata.get("group") or group
            if times[line] == 1:
                groups.setdefault(group, []).append(line)
        for group, own in groups.items():
            out += [f"*{group}*\n"] if group and len(groups) > 1 else []
            out += [*own, ""]
        shared = [flag(field) for field, line in lines[name] if times[line] > 1]
        shared += ["those of [`must train`](#must-train)"] if name == "plan" else []
        if shared:
            out.append(f"And [of several commands](#flags-of-several-commands): {', '.join(shared)}.\n")
    return "\n".join(out)


def describe(command: str, field: Field[Any]) -> str:
    """A line about a flag: its value, its default, its help."""
    config, value = COMMANDS[command].config, default(field)
    if field.name in config.by_preset:
        value = describe_preset(config.by_preset[field.name], value.strip("`"))
    help_text = escape(field.metadata["help"]) + choices(get_type_hints(config)[field.name])
    return f"- {flag(field)}{f' ({value})' if value else ''}: {help_text}"


def flag(field: Field[Any]) -> str:
    word = field.metadata.get("metavar") or ""
    if field.metadata.get("positional"):
        return f"`{word or field.name.upper()}`"
    return f"`--{field.name.replace('_', '-')}{f' {word}' if word else ''}`"


def default(field: Field[Any]) -> str:
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
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
    if get_origin(kind) in (Union, UnionType):
        options += [option for option in get_args(kind) if get_origin(option) is Literal]
    values = [str(value) for option in options for value in get_args(option)]
    return f" ({', '.join(f'`{value}`' for value in values)})" if values else ""


def python() -> str:
    """The functions at `must` and what they return."""
    out = [MADE, "# Python: functions and results\n"]
    out.append("How they are used is in [From Python](../python.md). Parameters are keywords; one that a command takes")
    out.append("without its flag may be given without its name.\n")
    out.append("| function | |\n|---|---|")
    for name in COMMANDS:
        returns = inspect.signature(make_function(name)).return_annotation.__name__
        is_result = getattr(getattr(results, returns, None), "__module__", "") == results.__name__
        link = f"[`{returns}`](#{returns.lower()})" if is_result else f"`{returns}`"
        out.append(f"| [`must.{name}`](commands.md#must-{name}) | {link} |")
    out += [f"| `must.{name}` | {cell(first_line(getattr(must, name)))} |" for name in [*NOT_STAGES, *ERRORS]]
    out.append("")
    for name, kind in vars(results).items():
        if not is_dataclass(kind) or kind.__module__ != results.__name__:
            continue
        out.append(f"## {name}\n")
        out.append(arguments(inspect.cleandoc(kind.__doc__ or "")) + "\n")
        out.append(block("\n".join(f"{field.name}: {name_type(field.type)}" for field in fields(kind)), "python"))
        properties = [n for n, value in vars(kind).items() if isinstance(value, property) and not n.startswith("_")]
        out += [f"- `{n}`: {escape(first_line(getattr(kind, n).fget))}" for n in properties]
        out.append("")
    return "\n".join(out)


def name_type(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")


def arguments(doc: str) -> str:
    """A docstring's headings in bold and its indented lines as a list."""
    doc = re.sub(r"^(Args|Attributes|Raises|Returns):$", r"\n**\1**\n", doc, flags=re.MULTILINE)
    return re.sub(r"^    (\w[\w, ]*): ", r"- `\1`: ", doc, flags=re.MULTILINE)


def pipeline() -> str:
    """The commands of must-pipeline, and the parameters of a run."""
    out = [MADE, "# The pipeline's commands and parameters\n"]
    out += ["| command | does |\n|---|---|"]
    out += [f"| `must-pipeline {name}` | {text} |" for name, (_, text, _) in cli.COMMANDS.items()]
    out.append("\nEach has `--help`.\n")
    out.append("## A run's parameters\n")
    out.append("The lines of `run.yaml`, with their type and default.\n")
    out += parameters(PIPELINE / "must_pipeline.yaml")
    out.append("\n## Parameters of the second pipeline\n")
    out.append("Of `must_label.yaml`, which [labels images](../label-ten-million.md#in-kubeflow).\n")
    return "\n".join([*out, *parameters(PIPELINE / "must_label.yaml")]) + "\n"


def parameters(compiled: Path) -> list[str]:
    """A line for each parameter of a compiled pipeline."""
    spec = next(yaml.safe_load_all(compiled.read_text()))
    out = []
    for name, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        value = parameter.get("defaultValue")
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float):
            value = f"{value:g}"
        value = "required" if not parameter.get("isOptional") else "" if value in ("", {}, None) else f"`{value}`"
        kind = parameter["parameterType"].lower().removeprefix("number_")
        about = f"{kind}, {value}" if value else kind
        out.append(f"- `{name}` ({about}): {escape(parameter.get('description', ''))}")
    return out


def block(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"


def cell(text: str) -> str:
    """Escapes text for a table."""
    return escape(text).replace("|", "\\|")


def escape(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


if __name__ == "__main__":
    main()
