"""The format of shards, for writing and reading: index.json, its tables, and `must index verify`.

Each shard has a table of offsets in its tar. Each revision adds two tables to the output, uint64 [n]:
`names-NNNN.npy`, sorted hashes of its files' names and sources, and `contents-NNNN.npy`, the first 8 bytes of the
sha256 of its samples' files, in the index's order.

An index is untrusted: its names are used as paths and its numbers as sizes of memory, so every field is checked."""

import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import SHA256, make_record, match_form, require
from must.base.program import show_bar
from must.base.text import abbreviate, make_printable
from must.config.work import INDEX_FILE
from must.data.image.preprocess import check_levels

logger = logging.getLogger(__name__)


SHARD = r"[^\W\d]\w*-[0-9]{6,12}"  # of any split
SHARD_NAME, OFFSETS_NAME = re.compile(rf"{SHARD}\.tar"), re.compile(rf"{SHARD}\.npy")
TABLE = re.compile(r"(names|contents)-[0-9]{4,12}\.npy")
LARGEST_OFFSET = 2**53  # also of any other number; their sums in an index are far below 2^63
MOST_CHUNKS = 2**30  # chunk numbers have 32 bits, and --append continues them


def check_count(value: int) -> None:
    require(0 <= value < LARGEST_OFFSET, "must be a non-negative integer")


Count = Annotated[int, check_count]
Sha256 = Annotated[str, partial(match_form, SHA256, noun="sha256")]


@dataclass(frozen=True)
class Shard:
    """One tar file and its table of offsets, `<name without .tar>.npy`."""

    name: Annotated[str, partial(match_form, SHARD_NAME, noun="valid shard name")]  # of the tar, relative to the index
    split: str
    samples: Count
    bytes: Count
    sha256: Sha256  # of the tar
    offsets_sha256: Sha256  # of the .npy
    labelled: Count  # samples whose json member has a label

    @property
    def offsets_name(self) -> str:
        return self.name.removesuffix(".tar") + ".npy"


INDEX_VERSION = 1
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Index:
    """The content of index.json. Sample i of a split is the i-th of its shards' samples, in the order of `shards`."""

    revision: Count
    created_by: str
    source: dict[str, Any]
    settings: dict[str, Any]
    shards: tuple[Shard, ...]
    splits: dict[str, dict[str, Count]]  # name -> {"samples": ..., "labelled": ...}
    labels: tuple[str, ...]
    rejected: Count  # files that are no valid images
    reasons: dict[str, Count]  # counts by reason, most frequent first; those that differ in numbers only are one
    duplicates: Count  # samples with the content of an earlier one
    dropped: Count  # duplicates that were left out of the shards
    skipped: dict[str, Count] = field(default_factory=dict)  # files that are no images by their names, by extension
    tables: tuple[dict[str, str], ...] = ()  # {"name", "sha256"} of the files by which --append recognizes old images
    levels: Annotated[tuple[float, ...], check_levels] = ()  # of images with more than 8 bits, if there are any
    tones: dict[str, Count] = field(default_factory=dict)  # "black", "white": images that are almost that
    chunks: Count = 0  # number of chunks so far, so that appended samples get new keys
    version: int = INDEX_VERSION
    sha256: str = field(default="", compare=False)  # of index.json as it was read

    @property
    def files(self) -> set[str]:
        """Names of all files of the index, and of the list of rejected files."""
        shards = {name for shard in self.shards for name in (shard.name, shard.offsets_name)}
        return shards | {table["name"] for table in self.tables} | {REJECTED}

    @property
    def max_pixels(self) -> int:
        """The limit on the pixels of an image, as given to `must shard`."""
        return self.settings["max_pixels"]

    def list_shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order."""
        if split not in self.splits:
            known = ", ".join(f"{name} ({counts['samples']} images)" for name, counts in self.splits.items())
            raise UserError(f"the shards hold no split '{split}'; there are: {known}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_json(self) -> bytes:
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sha256"}
        content["shards"] = [vars(shard) for shard in self.shards]
        for name in ("levels", "tones"):
            if not content[name]:
                del content[name]
        return json.dumps(content, indent=1, ensure_ascii=True).encode() + b"\n"


NO_INDEX = Index(
    revision=-1, created_by="", source={}, settings={"max_pixels": 0}, shards=(), splits={}, labels=(), rejected=0,
    reasons={}, duplicates=0, dropped=0,
)  # fmt: skip
"""What a folder without an index is: no shards, and an empty sha256."""


def load_index(uri: str, sha256: str = "") -> Index:
    """Reads `uri`/index.json; `sha256` is the expected one, if given."""
    path = storage.join(uri, INDEX_FILE)
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{uri} holds no {INDEX_FILE}; make it with: must shard --source IMAGES --output {uri}"
        ) from None
    index = parse_index(data, path)
    if sha256 and index.sha256 != sha256:
        raise UserError(
            f"{path} has sha256 {index.sha256}, expected {sha256}: the shards were extended or rewritten meanwhile; "
            "start again with the present ones"
        )
    return index


def parse_index(data: bytes, path: str) -> Index:
    """The index in the bytes of an index.json, which are untrusted: every field is checked."""
    damage = UserError(f"{path} is damaged: no index of shards; run `must shard` again")
    content, version = storage.parse_object(data, lambda values: (values, values["version"]), damage)
    if version != INDEX_VERSION:
        raise UserError(
            f"{path} has version {abbreviate(version)}, this program reads {INDEX_VERSION}; update it, or shard again"
        )
    try:
        index = replace(make_record(Index, content), sha256=hashlib.sha256(data).hexdigest())
        check_index(index)
        return index
    except (UserError, KeyError) as error:
        problem = error if isinstance(error, UserError) else f"{error.args[0]} is missing"
        raise UserError(f"{path} is damaged ({problem}); run `must shard` again") from None


def check_index(index: Index) -> None:
    """Checks what the types of the fields do not say. Raises UserError, KeyError: a field is missing."""
    require(index.chunks < MOST_CHUNKS, f"chunks must be below {MOST_CHUNKS}")
    for name in ("uri", "fingerprint"):
        require(isinstance(index.source[name], str), f"source.{name} is not text")
    pixels = index.settings["max_pixels"]
    require(type(pixels) is int and 0 < pixels < LARGEST_OFFSET, "settings.max_pixels must be a positive integer")
    for table in index.tables:
        match_form(SHA256, table["sha256"], f"sha256 of {match_form(TABLE, table['name'], 'valid table name')}")
    for split, counts in index.splits.items():
        require(split.isidentifier(), f"{abbreviate(split)} is not a valid split name")
        require(counts["labelled"] <= counts["samples"], "more labels than samples")
    require(len({shard.name for shard in index.shards}) == len(index.shards), "a shard is listed twice")
    missing = {split: counts["samples"] for split, counts in index.splits.items()}
    for shard in index.shards:
        require(shard.name.rpartition("-")[0] == shard.split, f"{shard.name} is of another split")
        missing[shard.split] -= shard.samples
    require(not any(missing.values()), "the shards' samples do not add up to the splits'")


MAKE_AGAIN = "run `must shard` again"


def load_offsets(uri: str, shard: Shard) -> np.ndarray:
    """The offsets of each sample's members in the tar: int64 [samples, 4], bytes.

    Columns: image offset, image size, json offset, json size."""
    data = read_file(uri, shard.offsets_name, shard.offsets_sha256)
    return parse_offsets(data, storage.join(uri, shard.offsets_name), shard)


def read_file(uri: str, name: str, sha256: str, hint: str = MAKE_AGAIN) -> bytes:
    path = storage.join(uri, name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {hint}") from None
    require(hashlib.sha256(data).hexdigest() == sha256, f"{path} is damaged: its sha256 is not the index's; {hint}")
    return data


def parse_offsets(data: bytes, path: str, shard: Shard) -> np.ndarray:
    """The table in the bytes of a .npy file, which are untrusted: without a copy, so a header allocates no memory."""
    file, expected = io.BytesIO(data), ((1, 0), (shard.samples, 4), False, np.dtype(np.int64))
    try:
        header = np.lib.format.read_magic(file), *np.lib.format.read_array_header_1_0(file)
    except Exception:  # numpy has no common class for errors in a header
        header = None
    if header != expected or len(data) - file.tell() != 32 * shard.samples:
        raise UserError(f"{path} is damaged: no .npy file of int64 [{shard.samples}, 4]; {MAKE_AGAIN}")
    offsets = np.frombuffer(data, np.int64, offset=file.tell()).reshape(-1, 4)
    starts, sizes = offsets[:, ::2], offsets[:, 1::2]
    if (offsets < 0).any() or (sizes > shard.bytes).any() or (starts > shard.bytes - sizes).any():
        raise UserError(f"{path} is damaged: it points past the end of {shard.name}; {MAKE_AGAIN}")
    return offsets


def require_size(path: Path, uri: str, shard: Shard) -> None:
    """Raises ValueError: the tar is not as long as its index says; the offsets in its table are compared with that."""
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(
            f"{storage.join(uri, shard.name)} has {size} bytes, its index says {shard.bytes}; run `must index verify "
            f"{uri}` for details"
        )


def verify(uri: str) -> Index:
    """Reads all shards of an index; prints a line for each that is damaged."""
    index = load_index(uri)
    faults: list[str] = []
    for shard in show_bar(index.shards, desc="verify", unit="shard"):
        try:
            check_shard(uri, shard)
        except UserError as error:
            faults.append(f"{shard.name}: {error}")
            with tqdm.external_write_mode(file=sys.stdout):
                logger.info(make_printable(faults[-1]))
    if faults:
        problem = f"{len(faults)} of {len(index.shards)} shards are broken"
        raise UserError(f"{uri}: {problem}; the first fault: {faults[0]}")
    logger.info(f"{uri}: {len(index.shards)} shards, {sum(s.samples for s in index.shards)} images, all whole")
    return index


def check_shard(uri: str, shard: Shard) -> None:
    """Raises UserError: the shard or its table of offsets is not the one of the index."""
    location = storage.join(uri, shard.name)
    try:
        size = storage.size(location)
        require(size == shard.bytes, f"{size} bytes instead of {shard.bytes}")
        require(storage.compute_sha256(location) == shard.sha256, "its bytes have changed (sha256)")
        load_offsets(uri, shard)
    except FileNotFoundError:
        raise UserError("missing") from None


def read_contents(uri: str, index: Index) -> list[tuple[str, np.ndarray]]:
    """(split, uint64 [samples]: the first 8 bytes of the sha256 of each image) of each shard of the index."""
    contents, ends = read_tables(uri, index, "contents"), np.cumsum([0, *(shard.samples for shard in index.shards)])
    if len(contents) != ends[-1]:
        raise UserError(f"{uri}: the tables contents-*.npy have another number of images than the index")
    parts = np.split(contents, ends)[1:-1]
    return [(shard.split, part) for shard, part in zip(index.shards, parts, strict=True)]


def read_hashes(uri: str, index: Index, split: str) -> np.ndarray:
    """Uint64 [n]: the first 8 bytes of the sha256 of each image of the split."""
    return join_arrays(part for name, part in read_contents(uri, index) if name == split)


def read_tables(uri: str, index: Index, kind: str) -> np.ndarray:
    return join_arrays(read_table(uri, table) for table in index.tables if table["name"].startswith(f"{kind}-"))


def join_arrays(arrays: Iterable[np.ndarray]) -> np.ndarray:
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


def parse_hashes(data: bytes | bytearray) -> np.ndarray:
    """8-byte hashes, one after the other -> uint64 [n]."""
    return np.frombuffer(data, ">u8").astype(np.uint64)


def write_table(values: np.ndarray, uri: str) -> dict[str, str]:
    """Writes a .npy file. Returns its name and checksum for the index."""
    with storage.open_write(uri) as file:
        table = storage.HashingFile(file)
        np.lib.format.write_array(table, values, allow_pickle=False)
    return {"name": uri.rpartition("/")[2], "sha256": table.sha256}
