"""The index of a folder of shards: what lies in it, where each sample stands, and whether it is still whole."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from must import storage
from must.data.index_check import Shard, checked
from must.text import brief, printable

VERSION = 1
NAME, REJECTED = "index.json", "rejected.jsonl"


@dataclass(frozen=True)
class Index:
    """What `must shard` made. Sample i of a split is the i-th of its shards' samples, in the order of `shards`."""

    revision: int
    created_by: str
    source: dict[str, Any]
    settings: dict[str, Any]
    shards: tuple[Shard, ...]
    splits: dict[str, dict[str, int]]  # name -> {"samples": ..., "labelled": ...}
    labels: tuple[str, ...]
    rejected: int  # files set aside as no whole images
    reasons: dict[str, int]  # why, numbers replaced by N, most frequent first
    duplicates: int  # samples whose content had occurred before
    dropped: int  # duplicates that were left out of the shards
    skipped: dict[str, int] = field(default_factory=dict)  # files that no image would be called, by extension
    tables: tuple[dict[str, str], ...] = ()  # {"name", "sha256"} of the files by which --append knows the old images
    units: int = 0  # numbers of work units used up, so that appended samples get new keys
    version: int = VERSION
    sha256: str = field(default="", compare=False)  # of index.json as it was read

    @property
    def total_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def files(self) -> set[str]:
        """Names of all that the index speaks of, and of the list of rejected files, which lies beside it."""
        shards = {name for shard in self.shards for name in (shard.name, shard.offsets_name)}
        return shards | {table["name"] for table in self.tables} | {REJECTED}

    @property
    def max_pixels(self) -> int:
        """Of an image in the shards: what `must shard` was given."""
        return self.settings["max_pixels"]

    def shards_of(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order. Raises ValueError, naming the splits there are, when it is unknown."""
        if split not in self.splits:
            known = ", ".join(f"{name} ({counts['samples']} images)" for name, counts in self.splits.items())
            raise ValueError(f"the shards hold no split '{split}'; there are: {known}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_json(self) -> bytes:
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sha256"}
        content["shards"] = [vars(shard) for shard in self.shards]
        return json.dumps(content, indent=1, ensure_ascii=True).encode() + b"\n"


def load_index(uri: str, sha256: str = "") -> Index:
    """Reads `uri`/index.json; `sha256` is what it must be, if given.

    Raises:
        ValueError: there is none, it is damaged, it was written by a newer version, or it is another one.
    """
    path = storage.join(uri, NAME)
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{uri} holds no {NAME}; make it with: must shard --source IMAGES --output {uri}") from None
    index = parse_index(data, path)
    if sha256 and index.sha256 != sha256:
        raise ValueError(
            f"{path} has the sha256 {index.sha256}, asked for is {sha256}: the shards were added to or made anew "
            "in between; start again with those that are there now"
        )
    return index


def parse_index(data: bytes, path: str) -> Index:
    """The index in the bytes of an index.json, every field of it checked: anybody may have written it.

    Raises:
        ValueError: damaged, of a newer version, or with a name or checksum that no index of ours has.
    """
    try:
        content = json.loads(data)
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: no index of shards; run `must shard` again") from None
    if version != VERSION:
        what = version if isinstance(version, int | float) else f"of type {type(version).__name__}"
        raise ValueError(f"{path} has version {what}, this program reads {VERSION}; update it, or shard again")
    try:
        return Index(**checked(content), sha256=hashlib.sha256(data).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {brief(str(error))}"
        raise ValueError(f"{path} is damaged ({problem}); run `must shard` again") from None


def load_offsets(uri: str, shard: Shard) -> np.ndarray:
    """Where each sample's members stand in the tar: int64 [samples, 4], bytes.

    Columns: image offset, image size, json offset, json size.

    Raises:
        ValueError: the table is missing, damaged or another one than the index names.
    """
    return parse_offsets(read_offsets(uri, shard), storage.join(uri, shard.offsets_name), shard)


def read_offsets(uri: str, shard: Shard) -> bytes:
    path = storage.join(uri, shard.offsets_name)
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; run `must shard` again") from None


def parse_offsets(data: bytes, path: str, shard: Shard) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != shard.offsets_sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not the index's; run `must shard` again")
    try:
        offsets = parse_npy(data)
    except Exception:  # numpy has no one class for what can be wrong with a header
        raise ValueError(f"{path} is damaged: no .npy file; run `must shard` again") from None
    if offsets.shape != (shard.samples, 4) or offsets.dtype != np.int64:
        raise ValueError(f"{path} is damaged: int64 [{shard.samples}, 4] expected, not {offsets.dtype} {offsets.shape}")
    starts, sizes = offsets[:, ::2], offsets[:, 1::2]
    if (offsets < 0).any() or (sizes > shard.bytes).any() or (starts > shard.bytes - sizes).any():
        raise ValueError(f"{path} is damaged: it points behind the end of {shard.name}; run `must shard` again")
    return offsets


def parse_npy(data: bytes) -> np.ndarray:
    """What stands in a .npy file, without a copy: so a header that promises more than there is costs no memory."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("unknown version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("not as long as its header says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def show(uri: str) -> Index:
    """Prints what a folder of shards holds."""
    index = load_index(uri)
    print(printable(f"{uri}  revision {index.revision}, made by {index.created_by} from {index.source['uri']}"))
    print(f"{'split':<12}{'images':>12}{'labelled':>12}{'shards':>9}{'MB':>12}")
    for name, counts in index.splits.items():
        shards = index.shards_of(name)
        size = sum(shard.bytes for shard in shards) / 1e6
        print(f"{printable(name):<12}{counts['samples']:>12}{counts['labelled']:>12}{len(shards):>9}{size:>12.1f}")
    if index.labels:
        shown = ", ".join(index.labels[:10]) + (", ..." if len(index.labels) > 10 else "")
        print(f"labels: {len(index.labels)} ({printable(shown)})")
    print(f"rejected: {index.rejected}  duplicates: {index.duplicates} ({index.dropped} left out)")
    print(f"sha256 of the index: {index.sha256}")
    return index


def verify(uri: str) -> Index:
    """Reads every shard again and checks sizes, checksums, offsets and counts; prints a line for what is broken.

    Raises:
        ValueError: something is broken.
    """
    from must.data.verify import verify_shards  # it needs this module

    return verify_shards(uri)
