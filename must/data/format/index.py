"""The index of a folder of shards: reading, checking and writing it.

Its names are used as paths and its numbers as sizes of memory, and it is untrusted: every field is checked."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import INDEX_FILE
from must.base.names import SHA256, SHARD_NAME, TABLE, of_form
from must.base.parameters import make_record, require
from must.base.text import brief

LARGEST_OFFSET = 2**53  # also of any other number; their sums in an index are far below 2^63
MOST_CHUNKS = 2**30  # chunk numbers have 32 bits, and --append continues them


def check_count(value: int) -> None:
    require(0 <= value < LARGEST_OFFSET, "must be a non-negative integer")


def check_form(pattern: re.Pattern[str], noun: str) -> Callable[[str], object]:
    return lambda value: of_form(pattern, value, noun)


Count = Annotated[int, check_count]
Sha256 = Annotated[str, check_form(SHA256, "sha256")]


@dataclass(frozen=True)
class Shard:
    """One tar file and its table of offsets, `<name without .tar>.npy`."""

    name: Annotated[str, check_form(SHARD_NAME, "valid shard name")]  # of the tar, relative to the index
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
            f"{path} has version {brief(version)}, this program reads {INDEX_VERSION}; update it, or shard again"
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
    for name in ("resize", "max_pixels"):
        value = index.settings[name]
        require(type(value) is int and 0 <= value < LARGEST_OFFSET, f"settings.{name} must be a non-negative integer")
    require(index.max_pixels > 0, "settings.max_pixels is 0")
    for table in index.tables:
        of_form(SHA256, table["sha256"], f"sha256 of {of_form(TABLE, table['name'], 'valid table name')}")
    for split, counts in index.splits.items():
        require(split.isidentifier(), f"{brief(split)} is not a valid split name")
        require(counts["labelled"] <= counts["samples"], "more labels than samples")
    require(len({shard.name for shard in index.shards}) == len(index.shards), "a shard is listed twice")
    missing = {split: counts["samples"] for split, counts in index.splits.items()}
    for shard in index.shards:
        require(shard.name.rpartition("-")[0] == shard.split, f"{shard.name} is of another split")
        missing[shard.split] -= shard.samples
    require(not any(missing.values()), "the shards' samples do not add up to the splits'")
