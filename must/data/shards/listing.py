"""All files of a run, as planned chunks, and what else decides the bytes of its shards."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.config import ShardConfig
from must.data.shards.chunk import Chunk, Settings
from must.data.shards.history import History
from must.data.shards.shuffle import Shuffled, shuffle
from must.data.shards.workdir import Workdir
from must.data.sources.archives import open_archives
from must.data.sources.base import ARCHIVE, ListingReport, Source, below
from must.data.sources.files import Folder, Manifest
from must.data.sources.table_files import TABLE_FILE
from must.data.sources.tables import ColumnNames, open_tables


def open_source(
    uri: str, labels: str, option: str, exclude: str = "", image_column: str = "", label_column: str = ""
) -> Source:
    """The source at `uri`.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag it was given with, for messages.
        exclude: a folder inside that is not listed: the output.
        image_column, label_column: names of a table's columns; "" for the usual names.

    Raises:
        ValueError: there is nothing, or nothing of a known kind.
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


@dataclass(frozen=True)
class Listing:
    """All files of a run, in order."""

    parts: tuple[tuple[Source, str, Shuffled], ...]  # source, the split all of it goes to or "", its plan
    rejected: tuple[tuple[str, str], ...]  # (name, reason) of what could not even be listed
    skipped: dict[str, int]
    fingerprint: str
    key: str  # of the fingerprint and what is rejected

    @property
    def items(self) -> int:
        return sum(plan.items for _, _, plan in self.parts)


def open_sources(config: ShardConfig) -> list[tuple[Source, str]]:
    """The test source comes first, so that its shards do not depend on how much else there is."""
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
    """All chunks, of `size` files each but for a source's last one; they are numbered from `first`."""
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
    """What the index says about how the shards were made; two runs with the same may share their work."""
    own = {"labels": config.labels, "samples_per_shard": config.samples_per_shard}
    return own | asdict(settings_of(config)) | {"drop_duplicates": config.drop_duplicates}
