"""All files of a run, shuffled and divided into chunks, and the settings that determine the bytes of its shards.

Items are ordered by an 8-byte hash of their names. The lines of a listing are in a temporary file; the hashes and the
lines' offsets are in memory, 16 bytes a file, and 8 bytes a file of earlier revisions. The result is one file of items
in order, and the offsets at which the chunks start, so that a worker reads only its own part."""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import abbreviate
from must.config import ShardConfig
from must.config.defaults import parse_part
from must.data.format import Index, parse_hashes, read_contents, read_tables
from must.data.sources.archives import Archives, expand_range, list_existing_files
from must.data.sources.files import (
    ARCHIVE,
    Folder,
    Item,
    ListingReport,
    Manifest,
    Source,
    describe_no_images,
    find_kind,
    find_relative_folder,
    hash_name,
    make_relative_names,
)
from must.data.sources.tables import TABLE_FILE, Tables, is_table, name_tables

logger = logging.getLogger(__name__)

BATCH = 8192  # names that are searched at once


class History:
    """What earlier revisions hold, the tables of an index, by which --append knows a file by its name, an image by its
    content."""

    def __init__(self, uri: str, index: Index) -> None:
        self.names, self.contents = np.sort(read_tables(uri, index, "names")), read_contents(uri, index)

    def unseen(self, uri: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items that no earlier revision has accepted from the source `uri`."""
        if not len(self.names):
            yield from items
            return
        stream, source = iter(items), identify_source(uri)
        while batch := list(islice(stream, BATCH)):
            hashes = parse_hashes(b"".join(name_hash(source, item.name) for item in batch))
            rows = np.minimum(np.searchsorted(self.names, hashes), len(self.names) - 1)
            known = self.names[rows] == hashes
            yield from (item for item, old in zip(batch, known, strict=True) if not old)


def identify_source(uri: str) -> str:
    """What identifies a source, however its path is written: a bucket's URI, or the path without links."""
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local(uri).resolve())


def name_hash(source: str, name: str) -> bytes:
    """A hash of 8 bytes of a file's name and source, by which --append knows files of earlier revisions."""
    return hashlib.blake2b(f"{source}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def open_source(
    uri: str, labels: str, option: str, exclude: str = "", image_column: str = "", label_column: str = ""
) -> Source:
    """The source at `uri`, with labels as of `must shard --labels`. `option`: the flag of the source, for messages;
    `exclude`: a folder in it that is not listed, the output; the columns of a table: "" for the usual names."""
    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    arrow = f"{option} {uri}: Arrow files are not read; write a Parquet file: dataset.to_parquet(FILE)"
    require(not uri.lower().endswith(".arrow"), arrow)
    columns = (image_column, label_column)
    if ARCHIVE.search(uri):
        files = list_existing_files(uri, option)
        return Archives(uri, files, labels, option, make_relative_names(files) if len(files) > 1 else ())
    if TABLE_FILE.search(uri) and (expand_range(uri) != [uri] or not is_folder(uri)):
        files = list_existing_files(uri, option)
        return Tables(uri, name_tables(zip(files, make_relative_names(files), strict=True)), labels, option, columns)
    if not storage.is_remote(uri):
        path, kinds = storage.local(uri), "a .csv or .jsonl manifest, a .tar or .zip archive, or a .parquet table"
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(path.is_dir(), f"{option} {uri}: expected a folder of images, {kinds}")
    inside = find_relative_folder(uri, exclude)
    found, has_arrow = [], False
    for entry in storage.list_files(uri):
        if (inside and entry.name.startswith(inside)) or find_kind(entry.name) == "hidden":
            continue
        if find_kind(entry.name) is None and "." in entry.name.rpartition("/")[2]:
            return Folder(uri, labels, exclude)
        has_arrow = has_arrow or entry.name.lower().endswith(".arrow")
        if ARCHIVE.search(entry.name) or is_table(entry.name):
            found.append(entry.name)
    require(bool(found) or not has_arrow, arrow)
    if archives := sorted(filter(ARCHIVE.search, found)):
        files = [storage.join(uri, name) for name in archives]
        return Archives(uri, files, labels, option, archives, Folder(uri, labels, exclude, set(archives)))
    if tables := sorted(filter(is_table, found)):
        named = name_tables((storage.join(uri, name), name) for name in tables)
        return Tables(uri, named, labels, option, columns)
    require(not TABLE_FILE.search(uri), f"{option} {uri}: there is no such file, and no tables are below it")
    return Folder(uri, labels, exclude)


def is_folder(uri: str) -> bool:
    """Whether a path that is named as a table is a folder of tables, such as Spark writes."""
    return not storage.exists(uri) if storage.is_remote(uri) else storage.local(uri).is_dir()


@dataclass(frozen=True)
class Plan:
    """`path` holds the items as JSON lines; chunk i is the bytes [starts[i], starts[i + 1]) of it."""

    path: Path
    starts: "array[int]"
    items: int
    share: int  # the sum of the hashes of these items: it does not depend on the order of the listing
    total: int  # the same for all files of the source, of which these may be one part


def shuffle(
    items: Iterable[Item], folder: Path, chunk_size: int, part: tuple[int, int] = (1, 1), where: str = ""
) -> Plan:
    """Writes the plan of part I of N of the items to `folder`, on a disk with space for twice the listing. Raises
    UserError: a list has an image twice, with different labels; `where` begins the message."""
    (number, parts), share, total = part, 0, 0
    orders, ends = array("Q"), array("Q", [0])
    path, starts = folder / "plan.jsonl", array("Q", [0])
    with TemporaryFile(dir=folder) as listed, path.open("wb") as plan:
        for item in items:
            line, order = json.dumps(item).encode() + b"\n", hash_name(item.name)
            digest = int.from_bytes(hashlib.sha256(json.dumps(item[:-1]).encode() + b"\n").digest())  # without its row
            total += digest
            if order % parts == number - 1:
                share += digest
                listed.write(line)
                orders.append(order)
                ends.append(ends[-1] + len(line))
        listed.flush()

        def line_at(position: int) -> bytes:
            return os.pread(listed.fileno(), ends[position + 1] - ends[position], ends[position])

        positions = np.argsort(np.frombuffer(orders, np.uint64), kind="stable")
        size = 0
        for _, same in groupby(positions, key=orders.__getitem__):
            lines = sorted(map(line_at, same))  # a name may occur twice
            if len(lines) > 1:
                refuse_two_labels(lines, where)
            for line in lines:
                if size and size % chunk_size == 0:
                    starts.append(plan.tell())
                plan.write(line)
                size += 1
        if size:
            starts.append(plan.tell())
    return Plan(path, starts, size, share, total)


def refuse_two_labels(lines: Iterable[bytes], where: str) -> None:
    """Raises UserError: of these lines of a plan, two are of one image in a list or a table, with different labels."""
    labels: dict[str, str] = {}
    for item in (Item(*json.loads(line)) for line in lines):
        if item.row is not None and item.label is not None:
            label = labels.setdefault(item.name, item.label)
            both = f"{abbreviate(label)} and {abbreviate(item.label)}"
            require(label == item.label, f"{where}: {abbreviate(item.name)} is there twice, with the labels {both}")


@dataclass(frozen=True)
class Listing:
    """The files of a run, or of one part of it. `shares`, `totals`: as in Plan, of each source."""

    items: int
    shares: tuple[int, ...]
    rejected: tuple[tuple[str, str], ...]  # (name, reason) of files that could not be listed
    skipped: dict[str, int]
    totals: tuple[int, ...] = ()
    plans: tuple[tuple[Source, str, Plan], ...] = ()  # source, the split of all its items or "", its plan

    @property
    def key(self) -> str:
        """Two listings with equal keys have the same files and rejected files."""
        return hashlib.sha256(json.dumps([hash_files(self.shares), self.rejected]).encode()).hexdigest()


def hash_files(sums: Iterable[int]) -> str:
    """A hash of the files of all sources, in any order."""
    return hashlib.sha256("".join(f"{value % 2**256:064x}" for value in sums).encode()).hexdigest()


def open_sources(config: ShardConfig) -> list[tuple[Source, str]]:
    """The test source comes first, so that its shards do not depend on the size of the other source."""
    columns = (config.image_column, config.label_column)
    given = [(config.test_source, "--test-source", "test")] if config.test_source else []
    given.append((config.source, "--source", ""))
    return [(open_source(uri, config.labels, flag, config.output, *columns), split) for uri, flag, split in given]


def list_sources(config: ShardConfig, sources: list[tuple[Source, str]], history: History, folder: Path) -> Listing:
    """The files of the part `config.part`. Every part lists all files; part 1 reports those that cannot be listed.
    `folder`: an empty local one, for the time of the run. Raises UserError: a source has no images; where new ones are
    added to an index, only the test source needs some."""
    part = parse_part(config.part)
    rejected: list[tuple[str, str]] = []
    problems = ListingReport(lambda name, reason: rejected.append((name, reason)), find_size_limit(config))
    plans = []
    for number, (source, split) in enumerate(sources):
        part_folder = folder / f"plan-{number}"
        part_folder.mkdir(parents=True, exist_ok=True)
        source.prepare(part_folder)
        before, skipped = len(rejected), problems.skipped.copy()
        listed = problems.without_long_texts(source.items(problems))
        some = list(islice(listed, 1))
        where = f"--{split and 'test-'}source {source.uri}"
        if not some and (split or not len(history.names)):
            raise UserError(f"{where}: {explain_no_images(rejected[before:], problems.skipped - skipped)}")
        items = history.unseen(source.uri, chain(some, listed))
        plans.append((source, split, shuffle(items, part_folder, config.samples_per_shard, part, where)))
    if problems.unread_labels:
        logger.info(f"{problems.unread_labels} labels are not read; --labels csv reads them")
    first = part[0] == 1
    return Listing(
        items=sum(plan.items for _, _, plan in plans),
        shares=tuple(plan.share for _, _, plan in plans),
        rejected=tuple(sorted(rejected)) if first else (),
        skipped=dict(sorted(problems.skipped.items())) if first else {},
        totals=tuple(plan.total for _, _, plan in plans),
        plans=tuple(plans),
    )


def explain_no_images(rejected: list[tuple[str, str]], skipped: Mapping[str, int]) -> str:
    """Why a source has no image. `rejected`: (name, reason); `skipped`: numbers of other files, by extension."""
    if rejected and not skipped:
        name, reason = min(rejected)
        return f"no images that can be read; {name}: {reason}"
    return describe_no_images(skipped)


@dataclass(frozen=True)
class Chunk:
    """Some items of a plan."""

    number: int
    source: Source
    plan: Path
    start: int  # in the file `plan`, bytes
    stop: int
    files: int
    split: str  # of all files; "" means by hash

    def read(self) -> Iterator[Item]:
        with self.plan.open("rb") as file:
            file.seek(self.start)
            for line in file.read(self.stop - self.start).splitlines():
                yield Item(*json.loads(line))


def cut_chunks(listing: Listing, size: int, first: int, part: tuple[int, int]) -> Iterator[Chunk]:
    """All chunks of part I of N, with every N-th number. Each has `size` files, except the last chunk of a source."""
    number, parts = part
    number += first - 1
    for source, split, plan in listing.plans:
        for position, (start, stop) in enumerate(pairwise(plan.starts)):
            files = min(size, plan.items - position * size)
            yield Chunk(number, source, plan.path, start, stop, files, split)
            number += parts


def find_size_limit(config: ShardConfig) -> int:
    """Of a file."""
    return config.max_file_mb * 1_000_000


def encode_settings(config: ShardConfig) -> dict[str, Any]:
    """The settings in the index, which determine the shards' bytes."""
    names = ("labels", "samples_per_shard", "split", "max_pixels")
    settings = {name: getattr(config, name) for name in names}
    return settings | {"max_bytes": find_size_limit(config), "drop_duplicates": config.drop_duplicates}
