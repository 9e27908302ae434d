"""A listing of any length, shuffled and cut into units of work, in flat memory.

Every item has a place in the order: the hash of its name. Items go to bucket files by the first bits of that hash, and
each bucket is sorted in memory; one bucket of ten million names holds about 40,000. The result is one file of items
and the positions at which the units start, so that a worker reads just its own part.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from must.sources.base import Item

BUCKETS = 256


@dataclass(frozen=True)
class Plan:
    """`path` holds the items as JSON lines; unit i is the bytes [starts[i], starts[i + 1]) of it."""

    path: Path
    starts: array
    items: int
    fingerprint: str  # sha256 over all items in order: the same files give the same, wherever the listing began

    @property
    def units(self) -> int:
        return len(self.starts) - 1

    def unit(self, number: int) -> tuple[int, int]:
        return self.starts[number], self.starts[number + 1]


def make_plan(items: Iterable[Item], folder: Path, unit_size: int) -> Plan:
    """Writes the plan below `folder`, which must be empty and on a disk with room for twice the listing."""
    folder.mkdir(parents=True, exist_ok=True)
    buckets = scatter(items, folder)
    path, starts, count, fingerprint = folder / "plan.jsonl", array("Q", [0]), 0, hashlib.sha256()
    with path.open("wb") as file:
        for bucket in buckets:
            for line in sorted_lines(bucket):
                file.write(line)
                fingerprint.update(line)
                count += 1
                if count % unit_size == 0:
                    starts.append(file.tell())
            bucket.unlink()
        if file.tell() != starts[-1]:
            starts.append(file.tell())
    return Plan(path, starts, count, fingerprint.hexdigest())


def read_unit(path: Path, start: int, stop: int) -> Iterator[Item]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file.read(stop - start).splitlines():
            yield Item(*json.loads(line))


def scatter(items: Iterable[Item], folder: Path) -> list[Path]:
    paths = [folder / f"bucket-{number:03d}" for number in range(BUCKETS)]
    files = [path.open("wb") for path in paths]
    try:
        for item in items:
            order = place_of(item.name)
            files[order[0]].write(order.hex().encode() + json.dumps(item).encode() + b"\n")
    finally:
        for file in files:
            file.close()
    return paths


def sorted_lines(bucket: Path) -> Iterator[bytes]:
    """By hash, then by what the item says: a name that stands twice in a manifest has a place too."""
    for line in sorted(bucket.read_bytes().splitlines()):
        yield line[16:] + b"\n"


def place_of(name: str) -> bytes:
    """8 bytes. Names that are no text (arbitrary bytes on disk) count as well."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
