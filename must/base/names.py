"""Checks of file names in external indexes, registries and archives, and safe reading of external tar files.

Python's tarfile has two problems: it allocates as much memory as a header demands, and it stops silently at a header
that it cannot read."""

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

SHARD = r"[^\W\d]\w*-[0-9]{6,12}"  # of any split
SHARD_NAME, OFFSETS_NAME = re.compile(rf"{SHARD}\.tar"), re.compile(rf"{SHARD}\.npy")
TABLE = re.compile(r"(names|contents)-[0-9]{4,12}\.npy")
SHA256 = re.compile(r"[0-9a-f]{64}")


def safe_relative_path(name: object, where: str) -> str:
    """Returns `name` if it is a relative path below its folder; "/" may separate folders. `where`: for the message."""
    if isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/")):
        return name
    raise UserError(f"{where}: the name {brief(name)} leads out of its folder; it may not have been written by must")


def listed(uri: str) -> list[str]:
    """The names of the files below `uri`, checked by `safe_relative_path`, so that they can be copied.
    Raises ValueError: a name leads out of the folder; then nothing should be copied; FileNotFoundError,
    NotADirectoryError: there is no such local folder."""
    return sorted(safe_relative_path(entry.name, uri) for entry in storage.list_files(uri))


def require_no_links(uri: str, flag: str) -> None:
    """Raises ValueError: there is a link below the local folder `uri`, whose target must perhaps not be published."""
    if storage.is_remote(uri):
        return
    root = storage.local(uri)
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *files)):
            name = brief(str(path.relative_to(root)))
            require(not path.is_symlink(), f"{flag} {uri}: {name} is a link; put the file itself there")


def of_form(pattern: re.Pattern[str], value: object, noun: str) -> str:
    """Returns `value` if the whole of it matches."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UserError(f"{brief(value)} is not a {noun}")
    return value


LARGEST_HEADERS = {b"L": 1 << 20, b"K": 1 << 20, b"x": 1 << 16, b"g": 1 << 16, b"X": 1 << 16}
"""Limit of the bytes that follow a header of that kind: a name, the name of a link, attributes."""

GLOBAL = 1 << 16  # bytes of global attributes (they apply to all later members): tarfile copies them for each member
BLOCKS = 64  # blocks of the headers of one member, which include those before it and the lists of a sparse file
LARGEST_READ = 1 << 20  # bytes of any other read, such as a label
ATTRIBUTES = (b"x", b"g", b"X")
MANY_DIGITS = re.compile(rb"[0-9]{200}")  # in attributes: older versions of tarfile parse them in quadratic time
NEGATIVE = re.compile(rb"(?:^|\n)[0-9]+ size=\s*-")  # newer versions of tarfile stop silently at it


def require_end(file: BinaryIO, offset: int) -> None:
    """Raises ReadError: tarfile stopped reading at `offset`, but the archive does not end there: a damaged header, a
    truncated file, or several concatenated archives, of which tarfile reads only the first."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"a damaged header, or cut off, at byte {offset}")
    while following := file.read(1 << 20):
        if any(following):
            raise tarfile.ReadError(f"data after its end at byte {offset}; join archives with `tar -A`")


class Headers(io.FileIO):
    """A tar file with limits for each read: tarfile itself reads as many bytes as a header demands."""

    kind = b""  # the type byte of the last block; when more than a block is read, that block was a header
    blocks = 0  # blocks read for the current member
    attributes = 0  # bytes of global attributes so far

    def next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """`tar.next()`, where `tar` reads this file."""
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
