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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.config import ShardConfig
from must.data.shards.chunk import Chunk, Settings
from must.data.shards.history import Buckets, History
from must.data.shards.workdir import Workdir
from must.data.sources.archives import open_archives
from must.data.sources.base import ARCHIVE, Item, ListingReport, Source, below
from must.data.sources.files import Folder, Manifest
from must.data.sources.table_files import TABLE_FILE
from must.data.sources.tables import ColumnNames, open_tables


def open_source(
    uri: str, labels: str, option: str, exclude: str = "", image_column: str = "", label_column: str = ""
) -> Source:
    """The source at `uri`.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag of the source, for messages.
        exclude: a folder in the source that is not listed: the output.
        image_column, label_column: names of a table's columns; "" for the usual names.

    Raises:
        ValueError: there is no such file or folder, or it is of an unknown kind.
    """
    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    is_file = bool(ARCHIVE.search(uri) or TABLE_FILE.search(uri))
    several = "{" in uri and is_file
    if not storage.is_remote(uri) and not several:
        path = storage.local(uri)
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(
            path.is_dir() or (path.is_file() and is_file),
            f"{option} {uri}: expected a folder of images, a .csv or .jsonl manifest, a .tar or .zip archive, or a "
            ".parquet table",
        )
    inside = below(uri, exclude)
    archives = None if TABLE_FILE.search(uri) else open_archives(uri, labels, option, inside)
    columns = ColumnNames(image_column, label_column)
    return archives or open_tables(uri, labels, option, inside, columns) or Folder(uri, labels, exclude)


ITEM_BUCKETS = 256


@dataclass(frozen=True)
class Shuffled:
    """`path` holds the items as JSON lines; chunk i is the bytes [starts[i], starts[i + 1]) of it."""

    path: Path
    starts: "array[int]"
    items: int
    fingerprint: str  # sha256 of all items in order: it does not depend on the order of the listing

    @property
    def chunks(self) -> int:
        return len(self.starts) - 1

    def chunk(self, number: int) -> tuple[int, int]:
        return self.starts[number], self.starts[number + 1]


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


def list_sources(config: ShardConfig, sources: list[tuple[Source, str]], history: History, work: Workdir) -> Listing:
    rejected: list[tuple[str, str]] = []
    problems = ListingReport(lambda name, reason: rejected.append((name, reason)), config.max_file_mb * 1_000_000)
    parts = []
    for number, (source, split) in enumerate(sources):
        folder = work.local / f"plan-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        source.prepare(folder)
        items = history.unseen(source.uri, source.items(problems))
        plan = shuffle(items, folder, config.samples_per_shard)
        parts.append((source, split, plan))
    fingerprint = hashlib.sha256("".join(plan.fingerprint for _, _, plan in parts).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([fingerprint, sorted(rejected)]).encode()).hexdigest()
    return Listing(tuple(parts), tuple(sorted(rejected)), dict(sorted(problems.skipped.items())), fingerprint, key)


def chunks_of(listing: Listing, size: int, first: int) -> Iterator[Chunk]:
    """All chunks, numbered from `first`. Each has `size` files, except the last chunk of a source."""
    number = first
    for source, split, plan in listing.parts:
        for position in range(plan.chunks):
            files = min(size, plan.items - position * size)
            yield Chunk(number, source, plan.path, *plan.chunk(position), files, split)
            number += 1


def settings_of(config: ShardConfig) -> Settings:
    return Settings(
        split=config.split,
        resize=config.resize,
        quality=config.quality,
        validate=config.validate,
        max_pixels=config.max_pixels,
        max_bytes=config.max_file_mb * 1_000_000,
    )


def settings_json(config: ShardConfig) -> dict[str, Any]:
    """The settings in the index. Runs with equal settings may share their work."""
    settings = {"labels": config.labels, "samples_per_shard": config.samples_per_shard}
    return settings | asdict(settings_of(config)) | {"drop_duplicates": config.drop_duplicates}
