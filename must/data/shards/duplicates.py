"""Finds byte-identical images among all chunks in flat memory, and says which of them have to go.

Records of 16 bytes of sha256 are scattered to bucket files, and each bucket is sorted in memory. Among images of the
same content one is kept: one that older shards hold already, else one in the split `test`, else in another split than
`train`, else in `train`; and of those the first. So what is tested on is never trained on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from must.data.shards.shuffle import Buckets

BUCKETS = 64
OLD = -1  # the chunk of samples in shards of an earlier revision

RECORD = np.dtype(
    [("h0", "<u8"), ("h1", "<u8"), ("chunk", "<i4"), ("sample", "<i4"), ("split", "<i2"), ("rank", "<i2")]
)
DROP = np.dtype([("chunk", "<i4"), ("split", "<i2"), ("sample", "<i4"), ("kept_in", "<i2")])


@dataclass(frozen=True)
class Duplicates:
    """`drops` are the samples to leave out, DROP [n], sorted; `count` is of all that repeat an earlier one."""

    splits: tuple[str, ...]
    drops: np.ndarray
    count: int

    def of(self, chunk: int, split: str) -> np.ndarray:
        """The samples of a piece that have to go, DROP [n]."""
        first, last = np.searchsorted(self.drops["chunk"], [chunk, chunk + 1])
        part = self.drops[first:last]
        return part[part["split"] == self.splits.index(split)]


def rank(split: str) -> int:
    """The lower keeps an image that several splits hold."""
    return {"test": 0, "train": 2}.get(split, 1)


def find_duplicates(
    hashes: Iterable[tuple[int, str, np.ndarray]], splits: tuple[str, ...], folder: Path, drop_all: bool
) -> Duplicates:
    """Finds byte-identical images, and decides which to drop.

    Args:
        hashes: (chunk or OLD, split, uint8 [samples, 32]) of every piece; 16 of the 32 bytes are used.
        folder: for the bucket files; 36 bytes an image.
        drop_all: leave out repetitions inside a split too.
    """
    buckets = Buckets(folder, BUCKETS)
    for chunk, split, values in hashes:
        records = np.empty(len(values), RECORD)
        keys = np.ascontiguousarray(values[:, :16]).view("<u8").reshape(-1, 2)
        records["h0"], records["h1"] = keys[:, 0], keys[:, 1]
        records["chunk"], records["sample"] = chunk, np.arange(len(values))
        records["split"], records["rank"] = splits.index(split), rank(split)
        buckets.add_rows(values[:, 0] % BUCKETS, records)
    drops, count = [], 0
    for data in buckets:
        found, repeated = in_bucket(np.frombuffer(data, RECORD), drop_all)
        drops.append(found)
        count += repeated
    every = np.concatenate(drops)
    return Duplicates(splits, every[np.lexsort((every["sample"], every["split"], every["chunk"]))], count)


def in_bucket(records: np.ndarray, drop_all: bool) -> tuple[np.ndarray, int]:
    """(DROP [n], number of new samples that repeat another)."""
    fresh = records["chunk"] != OLD
    order = np.lexsort((records["sample"], records["chunk"], records["rank"], fresh, records["h1"], records["h0"]))
    records = records[order]
    if len(records) == 0:
        return np.empty(0, DROP), 0
    starts = np.ones(len(records), bool)
    starts[1:] = (records["h0"][1:] != records["h0"][:-1]) | (records["h1"][1:] != records["h1"][:-1])
    keeper = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    repeated = ~starts & (records["chunk"] != OLD)
    gone = repeated & (drop_all | (records["split"] != records["split"][keeper]))
    drops = np.empty(int(gone.sum()), DROP)
    for name in ("chunk", "split", "sample"):
        drops[name] = records[name][gone]
    drops["kept_in"] = records["split"][keeper][gone]
    return drops, int(repeated.sum())
