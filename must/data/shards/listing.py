"""All files of a run, shuffled and divided into chunks, and the settings that determine the bytes of its shards.

Items are ordered by the hash of their names. They are written to bucket files by the first bits of that hash, and one
bucket at a time is sorted in memory; with ten million names a bucket has about 40,000. The result is one file of items,
and the offsets at which the chunks start, so that a worker reads only its own part.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.config import ShardConfig
from must.data.shards.history import Buckets, History
from must.data.sources.archives import ArchiveFolder, Archives, existing_files, expanded
from must.data.sources.base import ARCHIVE, Item, ListingReport, Source, below, kind_of, relative_names
from must.data.sources.files import Folder, Manifest
from must.data.sources.tables import TABLE_FILE, Tables, is_table, name_tables


def open_source(
    uri: str, labels: str, option: str, exclude: str = "", image_column: str = "", label_column: str = ""
) -> Source:
    """The source at `uri`.
    Raises ValueError: there is no such file or folder, or it is of an unknown kind.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag of the source, for messages.
        exclude: a folder in the source that is not listed: the output.
        image_column, label_column: names of a table's columns; "" for the usual names.
    """
    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    columns = (image_column, label_column)
    if ARCHIVE.search(uri):
        files = existing_files(uri, option)
        return Archives(uri, files, labels, option, relative_names(files) if len(files) > 1 else ())
    if TABLE_FILE.search(uri) and (expanded(uri) != [uri] or not is_folder(uri)):
        files = existing_files(uri, option)
        return Tables(uri, name_tables(zip(files, relative_names(files), strict=True)), labels, option, columns)
    if not storage.is_remote(uri):
        path = storage.local(uri)
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(
            path.is_dir(),
            f"{option} {uri}: expected a folder of images, a .csv or .jsonl manifest, a .tar or .zip archive, or a "
            ".parquet table",
        )
    inside = below(uri, exclude)
    archives: list[str] = []
    tables: list[str] = []
    for entry in storage.list_files(uri):
        if (inside and entry.name.startswith(inside)) or kind_of(entry.name) == "hidden":
            continue
        if kind_of(entry.name) is None and "." in entry.name.rpartition("/")[2]:
            return Folder(uri, labels, exclude)
        if ARCHIVE.search(entry.name):
            archives.append(entry.name)
        if is_table(entry.name):
            tables.append(entry.name)
    if archives:
        return ArchiveFolder(uri, sorted(archives), labels, option, inside)
    if tables:
        named = name_tables((storage.join(uri, name), name) for name in sorted(tables))
        return Tables(uri, named, labels, option, columns)
    require(not TABLE_FILE.search(uri), f"{option} {uri}: there is no such file, and no tables are below it")
    return Folder(uri, labels, exclude)


def is_folder(uri: str) -> bool:
    """Whether a path that is named as a table is a folder of tables, such as Spark writes."""
    return not storage.exists(uri) if storage.is_remote(uri) else storage.local(uri).is_dir()


ITEM_BUCKETS = 256


@dataclass(frozen=True)
class Shuffled:
    """`path` holds the items as JSON lines; chunk i is the bytes [starts[i], starts[i + 1]) of it."""

    path: Path
    starts: "array[int]"
    items: int
    fingerprint: str  # sha256 of all items in order: it does not depend on the order of the listing


def shuffle(items: Iterable[Item], folder: Path, unit_size: int) -> Shuffled:
    """Writes the plan to `folder`, which must be empty and on a disk with space for twice the listing."""
    buckets = Buckets(folder, ITEM_BUCKETS)
    for item in items:
        order = sort_key(item.name)
        buckets.add(order[0], order.hex().encode() + json.dumps(item).encode() + b"\n")
    path, starts, count = folder / "plan.jsonl", array("Q", [0]), 0
    with path.open("wb") as file:
        plan = storage.HashingFile(file)
        for lines in buckets:
            for line in sorted(lines.splitlines()):  # by hash, then by the other fields: a name may occur twice
                plan.write(line[16:] + b"\n")
                count += 1
                if count % unit_size == 0:
                    starts.append(plan.size)
        if plan.size != starts[-1]:
            starts.append(plan.size)
    return Shuffled(path, starts, count, plan.sha256)


def sort_key(name: str) -> bytes:
    """A hash of 8 bytes. Names that are not valid text are accepted as well."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()


@dataclass(frozen=True)
class Listing:
    """All files of a run, in order."""

    parts: tuple[tuple[Source, str, Shuffled], ...]  # source, the split of all its items or "", its plan
    rejected: tuple[tuple[str, str], ...]  # (name, reason) of files that could not be listed
    skipped: dict[str, int]
    fingerprint: str
    key: str  # a hash of the fingerprint and `rejected`

    @property
    def items(self) -> int:
        return sum(plan.items for _, _, plan in self.parts)


def open_sources(config: ShardConfig) -> list[tuple[Source, str]]:
    """The test source comes first, so that its shards do not depend on the size of the other source."""
    columns = (config.image_column, config.label_column)
    sources = [(open_source(config.source, config.labels, "--source", config.output, *columns), "")]
    if config.test_source:
        test = open_source(config.test_source, config.labels, "--test-source", config.output, *columns)
        sources.insert(0, (test, "test"))
    return sources


def list_sources(config: ShardConfig, sources: list[tuple[Source, str]], history: History, folder: Path) -> Listing:
    """`folder`: an empty local one, for the time of the run."""
    rejected: list[tuple[str, str]] = []
    problems = ListingReport(lambda name, reason: rejected.append((name, reason)), max_bytes(config))
    parts = []
    for number, (source, split) in enumerate(sources):
        part = folder / f"plan-{number}"
        part.mkdir(parents=True, exist_ok=True)
        source.prepare(part)
        items = history.unseen(source.uri, source.items(problems))
        plan = shuffle(items, part, config.samples_per_shard)
        parts.append((source, split, plan))
    fingerprint = hashlib.sha256("".join(plan.fingerprint for _, _, plan in parts).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([fingerprint, sorted(rejected)]).encode()).hexdigest()
    return Listing(tuple(parts), tuple(sorted(rejected)), dict(sorted(problems.skipped.items())), fingerprint, key)


@dataclass(frozen=True)
class Chunk:
    """Chunk `number`: bytes [start, stop) of the file `plan`, which are `files` lines. `split` is the split of all
    files; "" means by hash."""

    number: int
    source: Source
    plan: Path
    start: int
    stop: int
    files: int
    split: str


def chunks_of(listing: Listing, size: int, first: int) -> Iterator[Chunk]:
    """All chunks, numbered from `first`. Each has `size` files, except the last chunk of a source."""
    number = first
    for source, split, plan in listing.parts:
        for position, (start, stop) in enumerate(pairwise(plan.starts)):
            files = min(size, plan.items - position * size)
            yield Chunk(number, source, plan.path, start, stop, files, split)
            number += 1


def max_bytes(config: ShardConfig) -> int:
    """Of a file."""
    return config.max_file_mb * 1_000_000


def settings_json(config: ShardConfig) -> dict[str, Any]:
    """The settings in the index, which determine the shards' bytes. Runs with equal settings may share their work."""
    names = ("labels", "samples_per_shard", "split", "resize", "quality", "validate", "max_pixels")
    settings = {name: getattr(config, name) for name in names}
    return settings | {"max_bytes": max_bytes(config), "drop_duplicates": config.drop_duplicates}


def read_chunk(path: Path, start: int, stop: int) -> Iterator[Item]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file.read(stop - start).splitlines():
            yield Item(*json.loads(line))
