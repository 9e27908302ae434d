"""What the places have in common: an entry of a listing, and the errors that callers tell apart."""

from typing import NamedTuple, Protocol

from must.base.errors import TransientError

Generation = int | str
"""Stands for what an object holds now: a number of Cloud Storage, an ETag elsewhere. 0: there is no object."""


class Entry(NamedTuple):
    """A file of a listing: its name relative to what was listed ("/" between folders), its size in bytes."""

    name: str
    size: int


class Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class ConflictError(OSError):
    """The object is not at the generation that the caller expected: another program wrote it."""


class UnreachableError(TransientError):
    """A server did not answer for minutes."""
