"""Tars that others have written, read by tarfile without its two surprises: it takes memory as a header says, and it
stops without a word at what it cannot read."""

from __future__ import annotations

import io
import tarfile
from typing import BinaryIO

LARGEST_HEADER = 16_000_000  # bytes, of a name or of attributes


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

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)
