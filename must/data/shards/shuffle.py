"""A listing of any length, shuffled and cut into chunks, in flat memory.

Every item has a place in the order: the hash of its name. Items go to bucket files by the first bits of that hash, and
each bucket is sorted in memory; one bucket of ten million names holds about 40,000. The result is one file of items
and the positions at which the chunks start, so that a worker reads just its own part.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from must.base import storage
from must.data.sources.base import Item


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


ITEM_BUCKETS = 256


@dataclass(frozen=True)
class Shuffled:
    """`path` holds the items as JSON lines; chunk i is the bytes [starts[i], starts[i + 1]) of it."""

    path: Path
    starts: array
    items: int
    fingerprint: str  # sha256 over all items in order: the same files give the same, wherever the listing began

    @property
    def chunks(self) -> int:
        return len(self.starts) - 1

    def chunk(self, number: int) -> tuple[int, int]:
        return self.starts[number], self.starts[number + 1]


def shuffle(items: Iterable[Item], folder: Path, unit_size: int) -> Shuffled:
    """Writes the plan below `folder`, which must be empty and on a disk with room for twice the listing."""
    buckets = Buckets(folder, ITEM_BUCKETS)
    for item in items:
        order = place_of(item.name)
        buckets.add(order[0], order.hex().encode() + json.dumps(item).encode() + b"\n")
    path, starts, count = folder / "plan.jsonl", array("Q", [0]), 0
    with path.open("wb") as file:
        plan = storage.HashingFile(file)
        for lines in buckets:
            for line in sorted(lines.splitlines()):  # by hash, then by what the item says: a name may be there twice
                plan.write(line[16:] + b"\n")
                count += 1
                if count % unit_size == 0:
                    starts.append(plan.size)
        if plan.size != starts[-1]:
            starts.append(plan.size)
    return Shuffled(path, starts, count, plan.sha256)


def read_chunk(path: Path, start: int, stop: int) -> Iterator[Item]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file.read(stop - start).splitlines():
            yield Item(*json.loads(line))


def place_of(name: str) -> bytes:
    """8 bytes. Names that are no text (arbitrary bytes on disk) count as well."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
