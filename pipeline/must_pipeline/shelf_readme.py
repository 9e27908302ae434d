"""READMEs as kubeflow/pipelines-components generates them from a component's docstring and metadata.

Their check makes each page again and compares, so these are the same, to the byte (checked by hand against their
generator at fab64a9).
"""

from __future__ import annotations

import ast
import textwrap
from datetime import datetime
from typing import Any

from docstring_parser import parse

WIDTH = 120
CAPITALS = ("KFP", "API", "URL", "ID", "UI", "CI", "CD")


def page(source: str, metadata: dict[str, Any], approvers: list[str], example: str) -> str:
    """A component's README."""
    function = function_in(source)
    told = parse(ast.get_docstring(function) or "")
    parts = [f"# {title(metadata['name'])} ✨", ""]
    if metadata["stability"] != "stable":
        parts += [f"> ⚠️ **Stability: {metadata['stability']}** — This asset is not yet stable and may change.", ""]
    parts += ["## Overview 🧾", "", overview(told), "", "## Inputs 📥", ""]
    parts += ["| Parameter | Type | Default | Description |", "|-----------|------|---------|-------------|"]
    described = {parameter.arg_name: parameter.description for parameter in told.params}
    none = [None] * (len(function.args.args) - len(function.args.defaults))
    for argument, default in zip(function.args.args, [*none, *function.args.defaults], strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else "Any"
        parts.append(f"| `{argument.arg}` | `{kind}` | `{shown(default)}` | {described.get(argument.arg, '')} |")
    parts.append("")
    if function.returns:
        parts += ["## Outputs 📤", "", "| Name | Type | Description |", "|------|------|-------------|"]
        result = told.returns.description if told.returns else ""
        parts += [f"| Output | `{ast.unparse(function.returns)}` | {result} |", ""]
    if example:
        parts += ["## Usage Examples 🧪", "", "```python", *example.split("\n"), "```", ""]
    day = datetime.fromisoformat(metadata["lastVerified"])
    facts = {**metadata, "lastVerified": day, "owners": {"approvers": approvers}}
    parts += ["## Metadata 🗂️", ""]
    parts += [f"- **{title(name)}**: {value(item)}" for name, item in facts.items()]
    lines = "\n".join(parts).split("\n")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def index_page(folder: str, sources: dict[str, str]) -> str:
    """The README of a folder of components, each named FOLDER_NAME in its metadata: {name: source of its component}."""
    name = title(folder)
    lines = [f"# {name}", "", f"This subcategory contains components in the **{name}** group:", ""]
    for where, source in sources.items():
        function = function_in(source)
        told = overview(parse(ast.get_docstring(function) or "")).split("\n")[0]
        lines.append(f"- [{title(f'{folder}_{where}')}](./{where}/README.md): {told[:WIDTH]}")
    return "\n".join(lines) + "\n"


def function_in(source: str) -> ast.FunctionDef:
    (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return function


def overview(told: Any) -> str:
    paragraphs = [part for part in (told.short_description, told.long_description) if part]
    found = "\n\n".join(paragraphs).split("\n\n")
    filler = textwrap.TextWrapper(width=WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(filler.fill(" ".join(part.split())) for part in found)


def shown(default: ast.expr | None) -> Any:
    if not isinstance(default, ast.Constant):
        return ast.unparse(default) if default else None
    return '""' if default.value == "" else default.value


def value(item: Any, depth: int = 0) -> str:
    """A list under its bullet; a mapping in a list on one line."""
    bullet = "\n" + "  " * depth + "  - "
    if isinstance(item, dict):
        pairs = [(title(name), value(inner, depth + 1)) for name, inner in item.items()]
        return bullet + bullet.join(f"{name}:{text}" if "\n" in text else f"{name}: {text}" for name, text in pairs)
    if isinstance(item, list):
        return bullet + bullet.join(
            ", ".join(f"{title(name)}: {text}" for name, text in one.items()) if isinstance(one, dict) else str(one)
            for one in item
        )
    return str(item)


def title(name: str) -> str:
    apart = "".join(
        f" {c}" if c.isupper() and before.islower() else c for before, c in zip(" " + name, name, strict=False)
    )
    words = apart.replace("_", " ").replace("-", " ").split()
    return " ".join(word.upper() if word.upper() in CAPITALS else word.capitalize() for word in words)
