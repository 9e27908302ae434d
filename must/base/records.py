"""Dataclasses as JSON objects, named tuples as lists: `asdict` writes them, `make_record` reads and checks them.

`Annotated[int, check]` is an integer for which `check(value)` raises no UserError.
"""

import dataclasses
import math
from functools import cache, partial
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from must.base.errors import UserError

Record = TypeVar("Record")
hints_of = cache(partial(get_type_hints, include_extras=True))


def make_record(kind: type[Record], content: Any) -> Record:
    """Makes a dataclass from a JSON object. Unknown names are ignored.
    Raises UserError: a value is missing or has a wrong type; the message begins with its name."""
    return convert_value(kind, content, "")


def convert_value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if origin is Annotated:
        value = convert_value(arguments[0], value, where)
        try:
            for check in kind.__metadata__:
                check(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return convert_value(kind, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = hints_of(kind)
        values = {}
        for field in dataclasses.fields(kind):
            if field.name in value:
                values[field.name] = convert_value(
                    hints[field.name], value[field.name], f"{where}.{field.name}".strip(".")
                )
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UserError(f"{f'{where}.{field.name}'.strip('.')} is missing")
        return kind(**values)
    if origin is list and isinstance(value, list):
        return [convert_value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(value) == len(kinds):
            return tuple(convert_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if isinstance(kind, type) and issubclass(kind, tuple) and hints_of(kind):  # a NamedTuple
        return kind(*convert_value(GenericAlias(tuple, tuple(hints_of(kind).values())), value, where))
    if origin is dict and isinstance(value, dict):
        return {name: convert_value(arguments[1], item, f"{where}.{name}".strip(".")) for name, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > 1e300 or math.isnan(value):
            raise UserError(f"{where} is no finite number")
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"{where or 'it'} has a wrong type")
