"""Names and tars from outside: what a foreign index, registry or archive may call a file, and tars that others wrote.

tarfile has two surprises: it takes memory as a header says, and stops silently at what it cannot read.
"""

import io
import os
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief

SHARD_NAME = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.tar")  # of any split; its table of offsets ends with .npy
TABLE = re.compile(r"(names|contents)-[0-9]{4,12}\.npy")
SHA256 = re.compile(r"[0-9a-f]{64}")


def below(name: object, where: str) -> str:
    """`name`, if it stays below any folder that it is joined to; "/" may separate folders.
    Raises ValueError: it is absolute or no text, or has an empty part, '.', '..' or a NUL; says so of `where`."""
    if isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/")):
        return name
    raise UserError(f"{where}: the name {brief(name)} leads out of its folder; it may not have been written by must")


def listed(uri: str) -> list[str]:
    """The names of the files below `uri`, to be copied to a place of ours.

    Raises:
        ValueError: one of them leads out of it; nothing should be copied then.
        FileNotFoundError, NotADirectoryError: there is no such local folder.
    """
    return sorted(below(entry.name, uri) for entry in storage.list_files(uri))


def require_no_links(uri: str, flag: str) -> None:
    """Raises ValueError: there is a link below the local folder `uri`: what it leads to may be nobody's to publish."""
    if storage.is_remote(uri):
        return
    root = storage.local(uri)
    for place, folders, files in os.walk(root):
        for path in (Path(place, name) for name in (*folders, *files)):
            inside = brief(str(path.relative_to(root)))
            require(not path.is_symlink(), f"{flag} {uri}: {inside} is a link; put the file itself there")


def of_form(pattern: re.Pattern[str], value: object, what: str) -> str:
    """`value`, if all of it matches. Raises ValueError: it does not; `what` it should have been."""
    require(isinstance(value, str) and pattern.fullmatch(value) is not None, f"{brief(value)} is not a {what}")
    assert isinstance(value, str)
    return value


LARGEST_HEADERS = {b"L": 1 << 20, b"K": 1 << 20, b"x": 1 << 16, b"g": 1 << 16, b"X": 1 << 16}
"""Bytes of what follows a header of that kind: a name, a link's name, attributes."""

GLOBAL = 1 << 16  # bytes of attributes that all members behind them get: tarfile copies them for each
BLOCKS = 64  # of one member's headers: before its own come others, and lists of a sparse file's parts after it
LARGEST_READ = 1 << 20  # of anything else: a label
ATTRIBUTES = (b"x", b"g", b"X")
MANY_DIGITS = re.compile(rb"[0-9]{200}")  # of attributes: older versions of tarfile search them in quadratic time
NEGATIVE = re.compile(rb"(?:^|\n)[0-9]+ size=\s*-")  # newer versions of tarfile end there silently


def require_end(file: BinaryIO, place: int) -> None:
    """Raises ReadError: tarfile's reading ended at `place`, but the archive does not: a damaged header, a cut, or
    archives put behind each other, of which tarfile reads the first."""
    file.seek(place)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"a damaged header, or cut off, at byte {place}")
    while following := file.read(1 << 20):
        if any(following):
            raise tarfile.ReadError(f"data after its end at byte {place}; join archives with `tar -A`")


class Headers(io.FileIO):
    """A tar of which no more is read at once than headers need: tarfile reads as much as a header says of itself."""

    kind = b""  # of the block that was read last: of a header, whenever more than a block is read
    blocks = 0  # since the member before
    attributes = 0  # bytes, of all members

    def next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """`tar.next()`, of a `tar` that reads this file."""
        self.blocks = 0
        return tar.next()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADERS.get(self.kind, LARGEST_READ) + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a header of impossible size")
        data = super().read(size)
        self.attributes += len(data) if self.kind == b"g" else 0
        self.blocks += size == tarfile.BLOCKSIZE
        if self.attributes > GLOBAL:
            raise tarfile.ReadError(f"attributes of all members of more than {GLOBAL} bytes")
        if self.blocks > BLOCKS:
            raise tarfile.ReadError(f"a member with more than {BLOCKS} headers, or a sparse file")
        if self.kind in ATTRIBUTES:
            if MANY_DIGITS.search(data):
                raise tarfile.ReadError("a header with a number of 200 digits")
            if NEGATIVE.search(data):
                raise tarfile.ReadError("a header with a negative size")
        if size == tarfile.BLOCKSIZE:
            self.kind = data[156:157]
        return data
