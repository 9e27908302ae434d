"""Tensors of the open inference protocol (v2) as bytes: what follows the JSON of a request."""

import math
import struct
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from must.deploy.serve.refused import Refused, wanted

NUMBERS = {"UINT8": np.uint8, "FP32": np.float32, "BOOL": np.bool_}


@dataclass(frozen=True)
class Tensor:
    """An answer's tensor: an array, or for BYTES a list of byte strings in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: np.ndarray | list[bytes]

    def raw(self) -> bytes:
        """As the protocol's binary extension has it: little endian, row-major; each byte string after its length."""
        if isinstance(self.data, list):
            return b"".join(struct.pack("<I", len(item)) + item for item in self.data)
        return np.ascontiguousarray(self.data).tobytes()

    def plain(self) -> list[Any]:
        """As JSON has it: flat."""
        if isinstance(self.data, list):
            return [item.decode("utf-8", "replace") for item in self.data]
        return self.data.ravel().tolist()


def byte_strings(raw: bytes | memoryview, count: int, where: str) -> list[bytes]:
    """The `count` byte strings of a raw BYTES tensor. Raises Refused: they do not fill it exactly."""
    found, place = [], 0
    for _ in range(count):
        wanted(place + 4 <= len(raw), f"{where}: its bytes end before its last string does")
        (length,) = struct.unpack_from("<I", raw, place)
        wanted(place + 4 + length <= len(raw), f"{where}: its bytes end before its last string does")
        found.append(bytes(raw[place + 4 : place + 4 + length]))
        place += 4 + length
    wanted(place == len(raw), f"{where}: {len(raw) - place} bytes too many")
    return found


def numbers(raw: bytes | memoryview, datatype: str, shape: list[int], where: str) -> np.ndarray:
    """A raw tensor of numbers. Raises Refused: the bytes do not fit the shape."""
    kind = np.dtype(NUMBERS[datatype])
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    wanted(len(raw) == size, f"{where}: {len(raw)} bytes, its shape and type make {size}")
    return np.frombuffer(raw, kind).reshape(shape)


def from_json(data: Any, datatype: str, shape: list[int], where: str) -> np.ndarray:
    """Numbers from JSON, flat or nested. Raises Refused: they are none, or do not fit, or not into memory."""
    check_leaves(data, math.prod(shape), where)
    try:
        with np.errstate(all="raise"):
            values = np.asarray(data)
            wanted(values.dtype.kind in "iufb", f"{where}: expected numbers")
            if datatype == "UINT8":
                wanted(
                    values.dtype.kind in "iu" and (not values.size or (values.min() >= 0 and values.max() <= 255)),
                    f"{where}: UINT8 takes whole numbers from 0 to 255",
                )
            return values.astype(NUMBERS[datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError, FloatingPointError):
        raise Refused(400, f"{where}: its data do not make a {datatype} tensor of shape {shape}") from None
    except MemoryError:
        raise Refused(503, f"{where}: the server has no memory left for it; try again") from None


def check_leaves(data: Any, most: int, where: str) -> None:
    """Before numpy sees them, which gives all strings of a list the room of the longest one.

    Raises:
        Refused: nested lists with anything but numbers inside, or with more than `most` of them.
    """
    level = [data]
    while (kinds := set(map(type, level))) == {list}:
        level = list(islice(chain.from_iterable(level), most + 1))
        wanted(len(level) <= most, f"{where}: more data than the {most} numbers of its shape")
    wanted(kinds <= {int, float, bool}, f"{where}: expected numbers")
