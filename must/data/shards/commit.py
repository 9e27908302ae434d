"""Makes shards and an index from the chunks' records: finds duplicates, joins tars, lists rejected files.

Byte-identical images are found among all chunks by 8-byte hashes in memory: 0.8 GB for 100 million files."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import Workers
from must.base.text import make_printable
from must.config import ShardConfig
from must.data.format import REJECTED, Index, Shard, join_arrays, write_table
from must.data.image.preprocess import BRIGHT, DARK, Levels
from must.data.shards.chunk import ChunkResult, ShardJob, assemble
from must.data.shards.listing import Chunk, History, Listing, hash_files
from must.data.shards.workdir import Run, Workdir

OLD = -1  # the chunk number of samples in shards of earlier revisions
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
    contents = join_arrays(values for _, _, values in groups)
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


@dataclass(frozen=True)
class Task:
    """The work of a run that adds to the index `previous`, whose generation is `before`."""

    config: ShardConfig
    listing: Listing
    chunks: list[Chunk]  # that this program processes
    numbers: list[int]  # of all chunks that become shards
    previous: Index
    history: History
    before: storage.Generation
    run: Run


def commit_shards(task: Task, work: Workdir, pool: Workers) -> Index:
    """Writes shards, tables and rejected.jsonl; the caller writes the index as the last file."""
    config, listing, previous = task.config, task.listing, task.previous
    records = Records(task, work)
    splits = in_order({*records.splits, *previous.splits}, config)
    new = ((record.number, split, record.arrays[f"hashes.{split}"]) for record in records for split in record.tars)
    duplicates = find_duplicates(task.history, new, splits, config.drop_duplicates)
    rejected = write_rejected(records, duplicates)
    if records.samples == len(duplicates.drops):
        return previous

    levels, tones = choose_levels(records, previous)
    max_pixels = max(config.max_pixels, previous.max_pixels)  # of old images too
    jobs = shard_jobs(splits, duplicates, records)
    made = {shard.name: shard for shard in pool.run(assemble, [(job, work) for job in jobs])}
    shards, revision = (*previous.shards, *(made[job.name] for job in jobs)), previous.revision + 1
    return Index(
        revision=revision,
        created_by=f"must {__version__}",
        source={
            "uri": config.source,
            "test_uri": config.test_source,
            "fingerprint": hash_files(listing.shares),
            "files": listing.items + len(listing.rejected),
        },
        settings=task.run["settings"] | {"max_pixels": max_pixels},
        shards=shards,
        splits=count_splits(shards, splits),
        labels=tuple(sorted({*records.labels, *previous.labels})),
        rejected=rejected.total(),
        reasons=dict(rejected.most_common()),
        duplicates=duplicates.count + previous.duplicates,
        dropped=len(duplicates.drops) + previous.dropped,
        skipped=dict(sorted((listing.skipped | ({NO_SUFFIX: records.other} if records.other else {})).items())),
        tables=(*previous.tables, *write_tables(jobs, records, revision)),
        chunks=task.numbers[-1] + 1,
        levels=levels,
        tones=tones,
    )


FEW_REJECTED = 5  # rejected files that never end a run, as 1% of a small folder is no file at all
NO_SUFFIX = "without a suffix"
MOST_LABELS = 100_000  # every process reads all of them with the index


class Records:
    """The records of a run's chunks, read one at a time (that of 1000 samples has 80 kB), and sums over all of them."""

    def __init__(self, task: Task, work: Workdir) -> None:
        self.task, self.work = task, work
        self.splits: set[str] = set()
        self.labels: set[str] = set()
        self.samples = self.other = 0
        for record in self:
            self.other += record.other
            self.splits |= set(record.tars)
            self.labels |= set(record.labels)
            self.samples += sum(len(record.arrays[f"hashes.{split}"]) for split in record.tars)
            require(
                len(self.labels) <= MOST_LABELS,
                f"--labels {task.config.labels}: more than {MOST_LABELS} different labels, which the index would name "
                "one by one; are these captions? Use --labels none",
            )

    def __iter__(self) -> Iterator[ChunkResult]:
        return map(self.read, self.task.numbers)

    def read(self, chunk: int) -> ChunkResult:
        return ChunkResult.read(self.work.local_record(chunk))

    def rejected(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of the files that this run has rejected."""
        return chain(self.task.listing.rejected, chain.from_iterable(record.rejected for record in self))


def choose_levels(records: Records, previous: Index) -> tuple[Levels, dict[str, int]]:
    """The levels of all images with more than 8 bits, which stay as of the first of them, and the numbers of images
    that are almost black or white."""
    found, tones = np.concatenate([record.arrays["levels"] for record in records]), Counter(previous.tones)
    for record in records:
        tones.update(record.tones)
    levels = previous.levels
    if not levels and len(found) and found.min() < found.max():
        levels = float(found[:, 0].min()), float(found[:, 1].max())
    if len(found):
        black, white = levels or (found.min(), found.min() + 1)
        darkest, brightest = ((found - black) * (255 / (white - black))).T
        tones.update(black=int((brightest <= DARK).sum()), white=int((darkest >= BRIGHT).sum()))
    return levels, {tone: number for tone, number in sorted(tones.items()) if number}


def in_order(splits: set[str], config: ShardConfig) -> tuple[str, ...]:
    """The splits in the order of --split, then test, then others by name."""
    known = [name for name in (*config.split, "test") if name in splits]
    return tuple(dict.fromkeys([*known, *sorted(splits)]))


def shard_jobs(splits: tuple[str, ...], duplicates: Duplicates, records: Records) -> list[ShardJob]:
    """The samples of consecutive chunks are joined as long as they fit into a shard. Shards are numbered after those of
    earlier revisions."""
    jobs: list[ShardJob] = []
    for split in splits:
        groups: list[list[tuple[int, list[int]]]] = []
        room = 0
        for record in records:
            drop = duplicates.among(record.number, split)["sample"].tolist()
            samples = len(record.arrays.get(f"hashes.{split}", ())) - len(drop)
            if samples > room:
                groups.append([])
                room = records.task.config.samples_per_shard
            if samples:
                groups[-1].append((record.number, drop))
                room -= samples
        old = (
            int(shard.name[len(split) + 1 : -len(".tar")])
            for shard in records.task.previous.shards
            if shard.split == split
        )
        first = 1 + max(old, default=-1)
        jobs += [ShardJob(f"{split}-{n:06d}.tar", split, chunks) for n, chunks in enumerate(groups, first)]
    return jobs


def count_splits(shards: tuple[Shard, ...], splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    counts = {split: {"samples": 0, "labelled": 0} for split in splits}
    for shard in shards:
        counts[shard.split]["samples"] += shard.samples
        counts[shard.split]["labelled"] += shard.labelled
    return {split: count for split, count in counts.items() if count["samples"]}


def write_tables(jobs: list[ShardJob], records: Records, revision: int) -> list[dict[str, str]]:
    """Writes the tables of this revision that --append reads."""
    output = records.work.output
    names = np.sort(join_arrays(record.arrays["names"] for record in records))
    contents = join_arrays(
        np.delete(records.read(number).arrays[f"hashes.{job.split}"], drop)
        for job in jobs
        for number, drop in job.chunks
    )
    tables = {"names": names, "contents": contents}
    return [write_table(values, storage.join(output, f"{name}-{revision:04d}.npy")) for name, values in tables.items()]


def write_rejected(records: Records, duplicates: Duplicates) -> Counter[str]:
    """Writes rejected.jsonl: this run's rejected files and reasons, then the duplicates that it left out. Counts the
    former by reason. Raises UserError: too many are rejected."""
    with storage.open_write(storage.join(records.work.output, REJECTED)) as file:
        for name, reason in chain(records.rejected(), list_dropped(duplicates, records)):
            file.write(json.dumps({"source": name, "reason": reason}).encode() + b"\n")
    kinds = count_kinds(reason for _, reason in records.rejected())
    refuse_too_many(records, kinds)
    return kinds


def count_kinds(reasons: Iterable[str]) -> Counter[str]:
    """Counts by reason. Those that differ in numbers only are one kind, named by the first of them."""
    counts, examples, several = Counter[str](), dict[str, str](), set[str]()
    for reason in reasons:
        kind = re.sub(r"\d+", "N", reason)
        counts[kind] += 1
        if examples.setdefault(kind, reason) != reason:
            several.add(kind)
    return Counter({examples[k] + (", and the like" if k in several else ""): n for k, n in counts.items()})


def list_dropped(duplicates: Duplicates, records: Records) -> Iterator[tuple[str, str]]:
    """(name, reason) of the dropped duplicates. The names are in the tars, which exist until the index is written."""
    last, arrays = -1, {}
    for chunk, split, sample, kept_in in duplicates.drops.tolist():
        if chunk != last:
            last, arrays = chunk, records.read(chunk).arrays
        name = duplicates.splits[split]
        _, _, start, size = arrays[f"offsets.{name}"][sample].tolist()
        text = storage.read_bytes(records.work.tar(chunk, name), start, size)
        where = "" if kept_in == split else f" in the split {duplicates.splits[kept_in]}"
        yield json.loads(text)["source"], f"same content as another image{where}"


def refuse_too_many(records: Records, kinds: Counter[str]) -> None:
    """Raises UserError: more files are rejected than the run may have, or nothing else is there.

    The share is of all revisions: files that are rejected each time must not make every small append fail."""
    config, previous = records.task.config, records.task.previous
    old = sum(counts["samples"] for counts in previous.splits.values()) + previous.dropped
    rejected = kinds.total()
    files = old + records.samples + rejected
    path = storage.join(config.output, REJECTED)
    if records.samples == 0 and not previous.sha256:
        why = "; ".join(f"{count} x {make_printable(reason)}" for reason, count in kinds.most_common(2))
        raise UserError(f"none of the {files} files of {config.source} is an image: {why}; all reasons are in {path}")
    if config.test_source and "test" not in {*records.splits, *previous.splits}:
        raise UserError(f"none of the files of {config.test_source} is an image; all reasons are in {path}")
    if rejected > max(FEW_REJECTED, config.max_rejected * files):
        examples = islice(records.rejected(), 3)
        first = "; ".join(f"{make_printable(name)}: {make_printable(reason)}" for name, reason in examples)
        raise UserError(
            f"{rejected} of {files} files were rejected ({rejected / files:.2%}), more than {FEW_REJECTED} files and "
            f"--max-rejected {config.max_rejected:g} allow, such as {first}; all are in {path}; mend or remove them, "
            f"or run again with --max-rejected {min(1.0, math.ceil(rejected / files * 100 + 1) / 100):g}: what is done "
            "is kept"
        )
