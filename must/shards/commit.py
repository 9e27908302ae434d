"""Makes shards and an index from the chunks' records: duplicates, joining, the lists of what was set aside."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from must import __version__, storage
from must.config import ShardConfig
from must.format.index import REJECTED, Index, Shard
from must.parameters import require
from must.shards.assemble import Piece, ShardJob, plan_shards
from must.shards.chunk import Chunk, ChunkResult, name_hash, piece_name, record_name
from must.shards.duplicates import OLD, Duplicates, find_duplicates
from must.shards.history import History, as_numbers, write_names, write_table
from must.shards.listing import Listing
from must.shards.pool import Pool
from must.shards.workdir import Workdir


def commit_shards(
    config: ShardConfig,
    settings: dict[str, Any],
    listing: Listing,
    chunks: list[Chunk],
    previous: Index | None,
    history: History,
    work: Workdir,
    pool: Pool,
) -> Index:
    """Writes shards, tables and rejected.jsonl; the index is the caller's to write, as the last file.

    Raises:
        ValueError: too many files were rejected, or none is left.
    """
    numbers = [chunk.number for chunk in chunks]
    totals = ChunkTotals(config, work, numbers)
    old_splits = tuple(previous.splits) if previous else ()
    splits = in_order({*totals.splits, *old_splits}, config)
    found = duplicates(config, totals, history, splits, work)
    rejected = write_rejected(config, listing, numbers, found, previous, work)
    check_rejected(config, totals, rejected.total(), previous)
    if previous and totals.samples == 0:
        return previous

    jobs = shard_jobs(config, numbers, splits, found, previous, work)
    shards = (*(previous.shards if previous else ()), *pool.assemble(jobs, work))
    revision = previous.revision + 1 if previous else 0
    tables = write_tables(jobs, numbers, revision, work)
    return Index(
        revision=revision,
        created_by=f"must {__version__}",
        source={
            "uri": config.source,
            "test_uri": config.test_source,
            "fingerprint": listing.fingerprint,
            "files": listing.items + len(listing.rejected),
        },
        settings=settings,
        shards=shards,
        splits=count_splits(shards, splits),
        labels=tuple(sorted({*totals.labels, *(previous.labels if previous else ())})),
        rejected=rejected.total(),
        reasons=dict(rejected.most_common()),
        duplicates=found.count + (previous.duplicates if previous else 0),
        dropped=len(found.drops) + (previous.dropped if previous else 0),
        skipped=listing.skipped,
        tables=(*(previous.tables if previous else ()), *tables),
        units=numbers[-1] + 1,
    )


def records(work: Workdir, numbers: list[int]) -> Iterator[ChunkResult]:
    """The chunks' records, one at a time: a record of 1000 samples has 80 kB."""
    for number in numbers:
        yield ChunkResult.read(work.records / record_name(number))


MOST_LABELS = 100_000  # each process reads the index, with all of them


class ChunkTotals:
    """What has to be known before the shards are made."""

    def __init__(self, config: ShardConfig, work: Workdir, numbers: list[int]) -> None:
        self.work, self.numbers = work, numbers
        self.splits: set[str] = set()
        self.labels: set[str] = set()
        self.samples = 0
        for record in records(work, numbers):
            self.splits |= set(record.pieces)
            self.labels |= set(record.labels)
            require(
                len(self.labels) <= MOST_LABELS,
                f"--labels {config.labels}: more than {MOST_LABELS} different labels, which the index would name one "
                "by one; are these captions? Use --labels none",
            )
            self.samples += sum(len(values) for values in record.hashes.values())


def in_order(splits: set[str], config: ShardConfig) -> tuple[str, ...]:
    """The splits as given by --split, then test, then others by name."""
    known = [name for name in (*config.split, "test") if name in splits]
    return tuple(dict.fromkeys([*known, *sorted(splits)]))


def duplicates(
    config: ShardConfig, totals: ChunkTotals, history: History, splits: tuple[str, ...], work: Workdir
) -> Duplicates:
    def hashes() -> Iterator[tuple[int, str, np.ndarray]]:
        for split, values in history.hashes():
            yield OLD, split, values
        for record in records(work, totals.numbers):
            for split, values in record.hashes.items():
                yield record.number, split, values

    return find_duplicates(hashes(), splits, work.local / "plan-duplicates", config.drop_duplicates)


def shard_jobs(
    config: ShardConfig,
    numbers: list[int],
    splits: tuple[str, ...],
    found: Duplicates,
    previous: Index | None,
    work: Workdir,
) -> list[ShardJob]:
    def pieces(split: str) -> Iterator[Piece]:
        for record in records(work, numbers):
            if split in record.pieces:
                content, drop = record.pieces[split], found.of(record.number, split)["sample"]
                samples = len(record.hashes[split]) - len(drop)
                yield Piece(record.number, split, samples, drop=tuple(drop.tolist()), **content)

    jobs: list[ShardJob] = []
    for split in splits:
        old = previous.shards_of(split) if previous and split in previous.splits else ()
        first = 1 + max((int(shard.name[len(split) + 1 : -len(".tar")]) for shard in old), default=-1)
        jobs += plan_shards(pieces(split), split, config.samples_per_shard, first)
    return jobs


def count_splits(shards: tuple[Shard, ...], splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    counts = {split: {"samples": 0, "labelled": 0} for split in splits}
    for shard in shards:
        counts[shard.split]["samples"] += shard.samples
        counts[shard.split]["labelled"] += shard.labelled
    return {split: count for split, count in counts.items() if count["samples"]}


def write_tables(jobs: list[ShardJob], numbers: list[int], revision: int, work: Workdir) -> list[dict[str, str]]:
    """Writes the tables of this revision that --append reads."""

    def contents() -> Iterator[np.ndarray]:
        for job in jobs:
            for piece in job.pieces:
                values = ChunkResult.read(work.records / record_name(piece.chunk)).hashes[piece.split]
                yield np.delete(values, list(piece.drop), axis=0)

    samples = sum(piece.samples for job in jobs for piece in job.pieces)
    names = (record.names for record in records(work, numbers))
    return [
        write_names(names, storage.join(work.output, f"names-{revision:04d}.npy"), work.local / "plan-names"),
        write_table(contents(), (samples, 32), np.uint8, storage.join(work.output, f"contents-{revision:04d}.npy")),
    ]


def write_rejected(
    config: ShardConfig, listing: Listing, numbers: list[int], found: Duplicates, previous: Index | None, work: Workdir
) -> Counter[str]:
    """Writes rejected.jsonl: what is no image and why, then duplicates that were left out. Counts the former."""
    kinds: Counter[str] = Counter()
    path = storage.join(config.output, REJECTED)
    with storage.open_write(path) as file:
        for source, reason, duplicate in chain(
            still_rejected(path, listing, numbers, work) if previous else (),
            ((name, reason, False) for name, reason in listing.rejected),
            ((name, reason, False) for record in records(work, numbers) for name, reason in record.rejected),
            dropped(found, work),
        ):
            line = {"source": source, "reason": reason} | ({"duplicate": True} if duplicate else {})
            file.write(json.dumps(line).encode() + b"\n")
            if not duplicate:
                kinds[re.sub(r"\d+", "N", reason)] += 1
    return kinds


def dropped(found: Duplicates, work: Workdir) -> Iterator[tuple[str, str, bool]]:
    """The duplicates left out. Their names are in the pieces, which stay until the index is written."""
    last, offsets = -1, {}
    for chunk, split, sample, kept_in in found.drops.tolist():
        if chunk != last:
            last, offsets = chunk, ChunkResult.read(work.records / record_name(chunk)).offsets
        name = found.splits[split]
        _, _, start, size = offsets[name][sample].tolist()
        text = storage.read_bytes(storage.join(work.units, piece_name(chunk, name)), start, size)
        where = "" if kept_in == split else f" in the split {found.splits[kept_in]}"
        yield json.loads(text)["source"], f"same content as another image{where}", True


def still_rejected(path: str, listing: Listing, numbers: list[int], work: Workdir) -> list[tuple[str, str, bool]]:
    """Earlier revisions' lines, but for the files that this run has tried again."""
    try:
        lines = [json.loads(line) for line in storage.read_bytes(path).splitlines()]
    except FileNotFoundError:
        return []
    tried = {name for name, _ in listing.rejected}
    uris = [source.uri for source, _, _ in listing.parts]
    # Few were rejected and many may be new: so it is their hashes that are looked for.
    wanted = {as_numbers(name_hash(uri, line["source"])).tobytes() for uri in uris for line in lines}
    accepted: set[bytes] = set()
    for record in records(work, numbers):
        tried.update(name for name, _ in record.rejected)
        accepted.update(wanted.intersection(row.tobytes() for row in record.names))

    def again(name: str) -> bool:
        return name in tried or any(as_numbers(name_hash(uri, name)).tobytes() in accepted for uri in uris)

    return [
        (line["source"], line["reason"], "duplicate" in line)
        for line in lines
        if "duplicate" in line or not again(line["source"])
    ]


def check_rejected(config: ShardConfig, totals: ChunkTotals, rejected: int, previous: Index | None) -> None:
    """The share counts over all revisions: files that are rejected again and again must not fail each small append."""
    old = sum(counts["samples"] for counts in previous.splits.values()) + previous.dropped if previous else 0
    files = old + totals.samples + rejected
    path = storage.join(config.output, REJECTED)
    if totals.samples == 0 and previous is None:
        raise ValueError(f"none of the {files} files of {config.source} is an image; see the reasons in {path}")
    if rejected > config.max_rejected * files:
        raise ValueError(
            f"{rejected} of {files} files were rejected ({rejected / files:.2%}), more than --max-rejected "
            f"{config.max_rejected:g} allows; see the reasons in {path}, then mend or remove these files, or run again "
            f"with --max-rejected {min(1.0, -(-rejected * 1000 // files) / 1000):g}: what is done is kept"
        )
