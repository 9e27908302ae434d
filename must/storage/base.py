"""What the places have in common: an entry of a listing, and the errors that callers tell apart."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """A file of a listing: its name relative to what was listed ("/" between folders), its size in bytes."""

    name: str
    size: int


class Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class ConflictError(OSError):
    """The object is not at the generation that the caller expected: somebody else wrote it."""


class LaterError(ValueError):
    """Nobody's input is wrong: the same command may work later, and goes on where it was."""


class UnreachableError(LaterError):
    """A server did not answer for minutes."""
