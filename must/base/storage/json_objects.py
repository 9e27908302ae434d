"""Files of ours that hold a JSON object: read, and refused where somebody or something has damaged them."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from must.base.errors import UserError
from must.base.storage.api import read_bytes

Result = TypeVar("Result")
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def read_object(uri: str | Path, check: Callable[[dict[str, Any]], Result], damaged: Exception) -> Result:
    """`parse_object` of a file. What keeps it from being read, a store that is away for instance, is no damage.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return parse_object(read_bytes(uri), check, damaged)


def parse_object(data: bytes | str, check: Callable[[dict[str, Any]], Result], damaged: Exception) -> Result:
    """What `check` makes of the JSON object that `data` is.

    Raises:
        The exception `damaged`: it is none, or has not what `check` looks for, which then raises anything in DAMAGE.
    """
    try:
        content = loads(data)
        if isinstance(content, dict):
            return check(content)
    except DAMAGE:
        pass
    raise damaged


def loads(data: bytes | str) -> Any:
    """json.loads without the garbage collector, which else looks again and again at all that has been read."""
    on = gc.isenabled()
    gc.disable()
    try:
        return json.loads(data)
    finally:
        if on:
            gc.enable()


def object_or_none(data: bytes | str, check: Callable[[dict[str, Any]], Result]) -> Result | None:
    """`parse_object`; None where that raises."""
    try:
        return parse_object(data, check, UserError())
    except ValueError:
        return None


def read_json(path: str, flag: str) -> dict[str, Any]:
    """A file's object. Raises ValueError: there is no such file, or it holds no JSON object."""
    try:
        return read_object(path, dict, UserError(f"{flag} {path}: is damaged or of another kind"))
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
