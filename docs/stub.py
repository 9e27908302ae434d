"""Writes must/__init__.pyi, the stages' signatures for editors and type checkers. `make reference` runs it."""

import inspect
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import must
from must.api.run import make_function
from must.table import COMMANDS, ERRORS, NOT_STAGES

STUB = Path(must.__file__).with_suffix(".pyi")
HEAD = '''\
"""{doc}"""
# Made by `make reference` from the stages' parameters.

from os import PathLike
from typing import {typing}

{imports}

Text: TypeAlias = str | PathLike[str]

__version__: str
__all__ = {names}
'''


def stub() -> str:
    functions = {name: inspect.signature(make_function(name)) for name in COMMANDS}
    results = sorted({(s.return_annotation.__module__, s.return_annotation.__name__) for s in functions.values()})
    typing = "Any, Literal, TypeAlias"
    imports = [f"from {module} import {name} as {name}" for module, name in results if module != "typing"]
    imports += [f"from {target.replace(':', ' import ')} as {name}" for name, target in NOT_STAGES.items()]
    imports += [f"from must.base.errors import {name} as {name}" for name in ERRORS]
    names = "\n".join(["[", *(f'    "{name}",' for name in sorted(must.__all__)), "]"])
    parts = [HEAD.format(doc=must.__doc__, typing=typing, imports="\n".join(sorted(imports)), names=names)]
    parts += [declaration(name, signature) for name, signature in functions.items()]
    return "".join(parts)


def declaration(name: str, signature: inspect.Signature) -> str:
    lines = list[str]()
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and "    *" not in lines:
            lines.append("    *")
        before = "**" if p.kind is p.VAR_KEYWORD else ""
        after = "" if p.default is p.empty else f" = {p.default!r}".replace("'", '"')
        lines.append(f"    {before}{p.name}: {type_text(p.annotation)}{after}")
    result, text = signature.return_annotation.__name__, COMMANDS[name].help
    return f"\ndef {name}(\n" + ",\n".join(lines) + f",\n) -> {result}:\n" + f'    """{text}"""\n'


def type_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(chr(34) + str(value) + chr(34) for value in get_args(kind))}]"
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(type_text, get_args(kind)))
    if kind is str:
        return "Text"
    return str(kind).replace("typing.", "").replace("'", '"') if get_args(kind) else kind.__name__
