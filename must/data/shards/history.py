"""What earlier revisions hold, by which --append knows a file by its name and an image by its content; and the search
for byte-identical images among all chunks. Both use 8-byte hashes in memory: 0.8 GB for 100 million files.

Each revision adds two tables to the output, uint64 [n]: `names-NNNN.npy`, sorted hashes of its files' names and
sources, and `contents-NNNN.npy`, the first 8 bytes of the sha256 of its samples' files, in the index's order."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.data.format import Index, read_file
from must.data.sources.files import Item

BATCH = 8192  # names that are searched at once
OLD = -1  # the chunk number of samples in shards of earlier revisions


class History:
    """The tables of an index."""

    def __init__(self, uri: str, index: Index) -> None:
        self.names, self.contents = np.sort(read_tables(uri, index, "names")), read_contents(uri, index)

    def unseen(self, uri: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items that no earlier revision has accepted from the source `uri`."""
        if not len(self.names):
            yield from items
            return
        stream, source = iter(items), source_place(uri)
        while batch := list(islice(stream, BATCH)):
            hashes = as_numbers(b"".join(name_hash(source, item.name) for item in batch))
            rows = np.minimum(np.searchsorted(self.names, hashes), len(self.names) - 1)
            known = self.names[rows] == hashes
            yield from (item for item, old in zip(batch, known, strict=True) if not old)


def read_contents(uri: str, index: Index) -> list[tuple[str, np.ndarray]]:
    """(split, uint64 [samples]: the first 8 bytes of the sha256 of each image) of each shard of the index."""
    contents, ends = read_tables(uri, index, "contents"), np.cumsum([0, *(shard.samples for shard in index.shards)])
    if len(contents) != ends[-1]:
        raise UserError(f"{uri}: the tables contents-*.npy have another number of images than the index")
    parts = np.split(contents, ends)[1:-1]
    return [(shard.split, part) for shard, part in zip(index.shards, parts, strict=True)]


def read_hashes(uri: str, index: Index, split: str) -> np.ndarray:
    """Uint64 [n]: the first 8 bytes of the sha256 of each image of the split."""
    return joined(part for name, part in read_contents(uri, index) if name == split)


def read_tables(uri: str, index: Index, kind: str) -> np.ndarray:
    return joined(read_table(uri, table) for table in index.tables if table["name"].startswith(f"{kind}-"))


def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


def read_table(uri: str, table: dict[str, str]) -> np.ndarray:
    """Raises ValueError: it is missing, or its checksum or format is wrong."""
    hint = "without it --append cannot tell what is new"
    data = read_file(uri, table["name"], table["sha256"], hint)
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
        require(values.ndim == 1 and values.dtype == np.uint64, "other numbers")
        return values
    except Exception:  # numpy has no common class for errors in a header
        raise UserError(f"{storage.join(uri, table['name'])} is damaged; {hint}") from None


def source_place(uri: str) -> str:
    """What identifies a source, however its path is written: a bucket's URI, or the path without links."""
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local(uri).resolve())


def name_hash(source: str, name: str) -> bytes:
    """A hash of 8 bytes of a file's name and source, by which --append knows files of earlier revisions."""
    return hashlib.blake2b(f"{source}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def as_numbers(data: bytes | bytearray) -> np.ndarray:
    """8-byte hashes, one after the other -> uint64 [n]."""
    return np.frombuffer(data, ">u8").astype(np.uint64)


def write_table(values: np.ndarray, uri: str) -> dict[str, str]:
    """Writes a .npy file. Returns its name and checksum for the index."""
    with storage.open_write(uri) as file:
        table = storage.HashingFile(file)
        np.lib.format.write_array(table, values, allow_pickle=False)
    return {"name": uri.rpartition("/")[2], "sha256": table.sha256}


DROP = np.dtype([("chunk", "<i4"), ("split", "<i2"), ("sample", "<i4"), ("kept_in", "<i2")])


@dataclass(frozen=True)
class Duplicates:
    """`drops`: the samples to drop, DROP [n], sorted; `count`: all new samples that repeat another."""

    splits: tuple[str, ...]
    drops: np.ndarray
    count: int

    def among(self, chunk: int, split: str) -> np.ndarray:
        """The samples of a chunk's split that are to be dropped, DROP [n]."""
        first, last = np.searchsorted(self.drops["chunk"], [chunk, chunk + 1])
        part = self.drops[first:last]
        return part[part["split"] == self.splits.index(split)]


def rank(split: str) -> int:
    """Of an image in several splits, the one in the split of the lowest rank is kept."""
    return {"test": 0, "train": 2}.get(split, 1)


def find_duplicates(
    history: History, new: Iterable[tuple[int, str, np.ndarray]], splits: tuple[str, ...], drop_all: bool
) -> Duplicates:
    """Finds byte-identical images, and decides which to drop. Takes about 50 bytes of memory an image.

    Of identical images the first one is kept, in this order: in older shards, in the split `test`, in splits other than
    `train`, in `train`. So no test image is in the training data, and nothing is added that an older shard holds.
    `new`: (chunk, split, uint64 [samples]); `drop_all`: repeated new images within a split, too."""
    hashes = chain(((OLD, *pair) for pair in history.contents), new)
    groups = sorted(hashes, key=lambda group: (group[0] != OLD, rank(group[1]), group[0]))
    ends = np.cumsum([len(values) for _, _, values in groups], dtype=np.int64)
    contents = joined(values for _, _, values in groups)
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    keepers = first[inverse]  # of each image, the position of the one of its content that is kept
    repeats = np.flatnonzero(keepers != np.arange(len(keepers)))
    chunk_numbers = np.array([chunk for chunk, _, _ in groups], np.int64)
    split_numbers = np.array([splits.index(split) for _, split, _ in groups], np.int64)
    repeat_groups, kept_groups = (np.searchsorted(ends, rows, side="right") for rows in (repeats, keepers[repeats]))
    is_new, is_kept_old = (chunk_numbers[repeat_groups] != OLD), (chunk_numbers[kept_groups] == OLD)
    gone = is_new & (drop_all | is_kept_old | (split_numbers[repeat_groups] != split_numbers[kept_groups]))
    drops = np.empty(int(gone.sum()), DROP)
    drops["chunk"], drops["split"] = chunk_numbers[repeat_groups][gone], split_numbers[repeat_groups][gone]
    drops["sample"] = (repeats - np.concatenate([[0], ends])[repeat_groups])[gone]
    drops["kept_in"] = split_numbers[kept_groups][gone]
    return Duplicates(splits, np.sort(drops), int(is_new.sum()))
