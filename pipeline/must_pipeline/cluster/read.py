"""YAML as frozen dataclasses, strictly: what is unknown is refused by its place in the file, with the nearest name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from must.base.parameters import convert
from must.base.text import did_you_mean
from must_components.images import IMAGES
from must_pipeline.stages import STAGES

KEYS: dict[str, Iterable[str]] = {"resources": STAGES, "timeouts": STAGES, "digests": IMAGES}


def build(kind: Any, content: Any, where: str) -> Any:
    """`content` as the dataclass `kind`; `where` is its place in the file."""
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'the file'}: expected 'name: value' lines, got '{content}'")
    fields = {name.rstrip("_"): (name, hint) for name, hint in typing.get_type_hints(kind).items()}
    for name in content:
        if name not in fields:
            raise ValueError(f"{key_path(where, str(name))}: unknown key; {did_you_mean(str(name), list(fields))}")
    values = {}
    for name, value in content.items():
        field_name, hint = fields[name]
        values[field_name] = value_of(hint, value, key_path(where, name))
    return kind(**values)


def value_of(kind: Any, value: Any, where: str) -> Any:
    if value is None:
        raise ValueError(f"{where}: has no value; leave the line out for the default")
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list and dataclasses.is_dataclass(arguments[0]):
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got '{value}'")
        return [build(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected 'name: value' lines, got '{value}'")
        known = KEYS.get(where)
        for name in value:
            if known and name not in known:
                raise ValueError(f"{key_path(where, str(name))}: unknown; {did_you_mean(str(name), list(known))}")
        return {str(name): value_of(arguments[1], item, key_path(where, str(name))) for name, item in value.items()}
    if kind is str and isinstance(value, bool):
        raise ValueError(f"{where}: expected text, got '{str(value).lower()}'; put it in quotes")
    return convert(value, kind, where)


def key_path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
