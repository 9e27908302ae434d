"""Checksums: of what is being written, so that it need not be read again, and of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

from must.base.storage.regular import open_regular


class HashingFile:
    """Passes on what is written to an open file, counts and hashes it. What exceeds `limit` bytes is not passed on."""

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        self.file, self.limit, self.size, self._digest = file, limit, 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        if self.limit is None or self.size <= self.limit:
            self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def sha256_of(path: Path) -> str:
    """A local file's checksum."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
