"""Tars that others have written, read by tarfile without its two surprises: it takes memory as a header says, and it
stops without a word at what it cannot read."""

import io
import re
import tarfile
from typing import BinaryIO

LARGEST = {b"L": 1 << 20, b"K": 1 << 20, b"x": 1 << 16, b"g": 1 << 16, b"X": 1 << 16}
"""Bytes of what follows a header of that kind: a name, a link's name, attributes."""

GLOBAL = 1 << 16  # bytes of attributes that all members behind them get: tarfile copies them for each
BLOCKS = 64  # of one member's headers: before its own come others, and lists of a sparse file's parts after it
LARGEST_READ = 1 << 20  # of anything else: a label
ATTRIBUTES = (b"x", b"g", b"X")
DIGITS = re.compile(rb"[0-9]{200}")  # of attributes: older versions of tarfile search them in quadratic time
NEGATIVE = re.compile(rb"(?:^|\n)[0-9]+ size=\s*-")  # newer versions of tarfile end there without a word


def require_end(file: BinaryIO, place: int) -> None:
    """Raises ReadError: tarfile's reading ended at `place`, but the archive does not: a damaged header, a cut, or
    archives put behind each other, of which tarfile reads the first."""
    file.seek(place)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"a damaged header, or cut off, at byte {place}")
    while following := file.read(1 << 20):
        if any(following):
            raise tarfile.ReadError(f"more comes after its end at byte {place}; archives are joined by `tar -A`")


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
        if size is None or not 0 <= size <= LARGEST.get(self.kind, LARGEST_READ) + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a header of impossible size")
        data = super().read(size)
        self.attributes += len(data) if self.kind == b"g" else 0
        self.blocks += size == tarfile.BLOCKSIZE
        if self.attributes > GLOBAL:
            raise tarfile.ReadError(f"attributes of all members of more than {GLOBAL} bytes")
        if self.blocks > BLOCKS:
            raise tarfile.ReadError(f"a member with more than {BLOCKS} headers, or a sparse file")
        if self.kind in ATTRIBUTES:
            if DIGITS.search(data):
                raise tarfile.ReadError("a header with a number of 200 digits")
            if NEGATIVE.search(data):
                raise tarfile.ReadError("a header with a negative size")
        if size == tarfile.BLOCKSIZE:
            self.kind = data[156:157]
        return data
