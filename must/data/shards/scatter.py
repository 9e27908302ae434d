"""Sorting more than memory holds: what is sorted goes to bucket files first, then each bucket is sorted in memory.

Files in the run's own folder and not sqlite3, whose sorts spill to the system's temporary folder: in a container that
may be small, or memory itself. On a 2-core x86-64 virtual machine 300,000 names are planned in 1.7 s of CPU time and
37 MB this way, in 2.4 s and 5 MB with sqlite3; 300,000 checksums compared in 0.25 s and 5 MB, not 1.5 s and 9 MB.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np


class Buckets:
    """`count` files without names in `folder`: nothing has to be tidied up, however the process ends."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [TemporaryFile(dir=folder) for _ in range(count)]  # noqa: SIM115

    def add(self, bucket: int, data: bytes) -> None:
        self.files[bucket].write(data)

    def add_rows(self, buckets: np.ndarray, rows: np.ndarray) -> None:
        """Adds each row [n, ...] to the bucket whose number [n] is beside it."""
        for bucket in np.unique(buckets):
            self.add(bucket, rows[buckets == bucket].tobytes())

    def __iter__(self) -> Iterator[bytes]:
        """What each bucket holds, in order; its file is gone then."""
        for file in self.files:
            with file:
                file.seek(0)
                data = file.read()
            yield data
