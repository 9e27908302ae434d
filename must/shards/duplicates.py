"""Finds byte-identical images among all units in flat memory, and says which of them have to go.

Records of 16 bytes of sha256 are scattered to bucket files, and each bucket is sorted in memory. Among images of the
same content one is kept: one that older shards hold already, else one in the split `test`, else in another split than
`train`, else in `train`; and of those the first. So what is tested on is never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BUCKETS = 64
OLD = -1  # the unit of samples in shards of an earlier revision

RECORD = np.dtype([("h0", "<u8"), ("h1", "<u8"), ("unit", "<i4"), ("sample", "<i4"), ("split", "<i2"), ("rank", "<i2")])
DROP = np.dtype([("unit", "<i4"), ("split", "<i2"), ("sample", "<i4"), ("kept_in", "<i2")])


@dataclass(frozen=True)
class Duplicates:
    """`drops` are the samples to leave out, DROP [n], sorted; `count` is of all that repeat an earlier one."""

    splits: tuple[str, ...]
    drops: np.ndarray
    count: int

    def of(self, unit: int, split: str) -> np.ndarray:
        """The samples of a piece that have to go, DROP [n]."""
        first, last = np.searchsorted(self.drops["unit"], [unit, unit + 1])
        part = self.drops[first:last]
        return part[part["split"] == self.splits.index(split)]


def rank(split: str) -> int:
    """The lower keeps an image that several splits hold."""
    return {"test": 0, "train": 2}.get(split, 1)


def find_duplicates(
    hashes: Iterable[tuple[int, str, np.ndarray]], splits: tuple[str, ...], folder: Path, drop_all: bool
) -> Duplicates:
    """
    Args:
        hashes: (unit or OLD, split, uint8 [samples, 32]) of every piece; 16 of the 32 bytes are used.
        folder: for the bucket files; 36 bytes an image.
        drop_all: leave out repetitions inside a split too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"hashes-{number:02d}" for number in range(BUCKETS)]
    files = [path.open("wb") for path in paths]
    try:
        for unit, split, values in hashes:
            for bucket, records in scattered(unit, splits.index(split), rank(split), values):
                files[bucket].write(records.tobytes())
    finally:
        for file in files:
            file.close()
    drops, count = [], 0
    for path in paths:
        found, repeated = in_bucket(np.fromfile(path, RECORD), drop_all)
        drops.append(found)
        count += repeated
        path.unlink()
    every = np.concatenate(drops)
    return Duplicates(splits, every[np.lexsort((every["sample"], every["split"], every["unit"]))], count)


def scattered(unit: int, split: int, rank: int, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    records = np.empty(len(values), RECORD)
    keys = np.ascontiguousarray(values[:, :16]).view("<u8").reshape(-1, 2)
    records["h0"], records["h1"] = keys[:, 0], keys[:, 1]
    records["unit"], records["sample"], records["split"], records["rank"] = unit, np.arange(len(values)), split, rank
    buckets = values[:, 0] % BUCKETS
    for bucket in np.unique(buckets):
        yield int(bucket), records[buckets == bucket]


def in_bucket(records: np.ndarray, drop_all: bool) -> tuple[np.ndarray, int]:
    """(DROP [n], number of new samples that repeat another)."""
    fresh = records["unit"] != OLD
    order = np.lexsort((records["sample"], records["unit"], records["rank"], fresh, records["h1"], records["h0"]))
    records = records[order]
    if len(records) == 0:
        return np.empty(0, DROP), 0
    starts = np.ones(len(records), bool)
    starts[1:] = (records["h0"][1:] != records["h0"][:-1]) | (records["h1"][1:] != records["h1"][:-1])
    keeper = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    repeated = ~starts & (records["unit"] != OLD)
    gone = repeated & (drop_all | (records["split"] != records["split"][keeper]))
    drops = np.empty(int(gone.sum()), DROP)
    for name in ("unit", "split", "sample"):
        drops[name] = records[name][gone]
    drops["kept_in"] = records["split"][keeper][gone]
    return drops, int(repeated.sum())
