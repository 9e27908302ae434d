"""The contents of earlier revisions: the file names that --append skips, and the hashes of images that new ones may
repeat; and the search for byte-identical images among all chunks. Its memory does not grow with the number of images:
records with 16 bytes of sha256 are distributed to bucket files, and one bucket at a time is sorted.

Each revision adds two tables to the output: `names-NNNN.npy`, uint64 [files, 2], sorted hashes of its files' names, and
`contents-NNNN.npy`, uint8 [samples, 32], the sha256 of its samples' files in the index's order.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.data.format.index import Index
from must.data.sources.base import Item

BUCKETS = 64
CHUNK = 8192


class Buckets:
    """`count` files without names in `folder`: they are gone when the process ends, however it ends."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [TemporaryFile(dir=folder) for _ in range(count)]  # noqa: SIM115

    def add(self, bucket: int, data: bytes) -> None:
        self.files[bucket].write(data)

    def add_rows(self, buckets: np.ndarray, rows: np.ndarray) -> None:
        """Adds row i of `rows` [n, ...] to the bucket `buckets[i]` [n]."""
        for bucket in np.unique(buckets):
            self.add(bucket, rows[buckets == bucket].tobytes())

    def __iter__(self) -> Iterator[bytes]:
        """The content of each bucket, in order; its file is then deleted."""
        for file in self.files:
            with file:
                file.seek(0)
                data = file.read()
            yield data


class History:
    """The tables of an index, memory-mapped; those in a bucket are copied to `folder` before."""

    def __init__(self, uri: str, index: Index | None, folder: Path) -> None:
        self.index = index
        self.names: list[np.ndarray] = []
        self.contents: list[np.ndarray] = []
        for number, table in enumerate(index.tables if index else ()):
            file = storage.join(uri, table["name"])
            path = folder / f"table-{number}.npy" if storage.is_remote(uri) else storage.local(file)
            try:
                if storage.is_remote(uri):
                    storage.download(file, path)
                values = read_table(path, table)
            except (FileNotFoundError, ValueError):
                raise UserError(f"{file} is missing or damaged; without it --append cannot tell what is new") from None
            if len(values):
                (self.names if table["name"].startswith("names-") else self.contents).append(values)
        samples = sum(shard.samples for shard in index.shards) if index else 0
        if sum(len(values) for values in self.contents) != samples:
            raise UserError(f"{uri}: the tables contents-*.npy have another number of images than the index")

    def unseen(self, uri: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items that no earlier revision has accepted from the source `uri`."""
        if not self.names:
            yield from items
            return
        stream = iter(items)
        while chunk := list(islice(stream, CHUNK)):
            hashes = as_numbers(b"".join(name_hash(uri, item.name) for item in chunk))
            known = np.zeros(len(chunk), bool)
            for names in self.names:
                known |= contains(names, hashes)
            yield from (item for item, old in zip(chunk, known, strict=True) if not old)

    def hashes(self) -> Iterator[tuple[str, np.ndarray]]:
        """(split, uint8 [samples, 32]) of each shard of the index."""
        table, start = 0, 0
        for shard in self.index.shards if self.index else ():
            if start == len(self.contents[table]):
                table, start = table + 1, 0
            yield shard.split, np.asarray(self.contents[table][start : start + shard.samples])
            start += shard.samples


def read_table(path: Path, table: dict[str, str]) -> np.ndarray:
    """The table in the file, memory-mapped. Raises ValueError: a wrong checksum or format."""
    if storage.sha256_of(path) != table["sha256"]:
        raise UserError("its bytes have changed")
    columns, dtype = (2, np.uint64) if table["name"].startswith("names-") else (32, np.uint8)
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # numpy has no common class for errors in a header
        raise UserError("no .npy file") from None
    if values.ndim != 2 or values.shape[1] != columns or values.dtype != dtype:
        raise UserError(f"{dtype.__name__} [n, {columns}] expected")
    return values


def name_hash(uri: str, name: str) -> bytes:
    """A hash of 16 bytes of a file's name and source, by which --append recognizes files of earlier revisions."""
    text = f"{uri.rstrip('/')}\0{name}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def contains(names: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Whether each of `hashes`, uint64 [n, 2], is a row of `names`, which is sorted by its first column."""
    rows = np.searchsorted(names[:, 0], hashes[:, 0])
    return (rows < len(names)) & (names[np.minimum(rows, len(names) - 1)] == hashes).all(axis=1)


def as_numbers(data: bytes) -> np.ndarray:
    """16-byte hashes, one after the other -> uint64 [n, 2]."""
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def write_names(chunks: Iterable[np.ndarray], uri: str, folder: Path) -> dict[str, str]:
    """Sorts hashes of names, uint64 [n, 2] per chunk, into one table, using bucket files."""
    buckets, count = Buckets(folder, BUCKETS), 0
    for chunk in chunks:
        count += len(chunk)
        buckets.add_rows((chunk[:, 0] >> np.uint64(58)).astype(np.int64), chunk)
    tables = (np.frombuffer(data, np.uint64).reshape(-1, 2) for data in buckets)
    return write_table((rows[np.lexsort(rows.T[::-1])] for rows in tables), (count, 2), np.uint64, uri)


def write_table(rows: Iterable[np.ndarray], shape: tuple[int, int], dtype: type, uri: str) -> dict[str, str]:
    """Writes a .npy of known shape piece by piece. Returns its name and checksum for the index."""
    with storage.open_write(uri) as file:
        table = storage.HashingFile(file)
        description = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": description, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(table, header)
        for values in rows:
            table.write(values.tobytes())
    return {"name": uri.rpartition("/")[2], "sha256": table.sha256}


OLD = -1  # the chunk number of samples in shards of earlier revisions

RECORD = np.dtype(
    [("h0", "<u8"), ("h1", "<u8"), ("chunk", "<i4"), ("sample", "<i4"), ("split", "<i2"), ("rank", "<i2")]
)
DROP = np.dtype([("chunk", "<i4"), ("split", "<i2"), ("sample", "<i4"), ("kept_in", "<i2")])


@dataclass(frozen=True)
class Duplicates:
    """`drops`: the samples to drop, DROP [n], sorted; `count`: all new samples that repeat another."""

    splits: tuple[str, ...]
    drops: np.ndarray
    count: int

    def of(self, chunk: int, split: str) -> np.ndarray:
        """The samples of a piece that are to be dropped, DROP [n]."""
        first, last = np.searchsorted(self.drops["chunk"], [chunk, chunk + 1])
        part = self.drops[first:last]
        return part[part["split"] == self.splits.index(split)]


def rank(split: str) -> int:
    """Of an image in several splits, the one in the split of the lowest rank is kept."""
    return {"test": 0, "train": 2}.get(split, 1)


def find_duplicates(
    hashes: Iterable[tuple[int, str, np.ndarray]], splits: tuple[str, ...], folder: Path, drop_all: bool
) -> Duplicates:
    """Finds byte-identical images, and decides which to drop.

    Of identical images the first one is kept, in this order: in older shards, in the split `test`, in splits other than
    `train`, in `train`. So no test image is in the training data.

    Args:
        hashes: (chunk or OLD, split, uint8 [samples, 32]) of every piece; 16 of the 32 bytes are used.
        folder: for the bucket files; 36 bytes per image.
        drop_all: drop repeated images within a split, too.
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
        bucket_drops, repeated = duplicates_in_bucket(np.frombuffer(data, RECORD), drop_all)
        drops.append(bucket_drops)
        count += repeated
    every = np.concatenate(drops)
    return Duplicates(splits, every[np.lexsort((every["sample"], every["split"], every["chunk"]))], count)


def duplicates_in_bucket(records: np.ndarray, drop_all: bool) -> tuple[np.ndarray, int]:
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
