"""Makes shards of the chunks' tars: renames one, or joins small ones and those with dropped samples; the workers."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from must.base import storage
from must.base.workers import Job, KilledWorkerError, Workers
from must.config import ShardConfig
from must.data.format.index import Shard
from must.data.image.bounds import describe_exit
from must.data.shards.chunk import (
    ChunkResult,
    TarWriter,
    npy,
    process_chunk,
)
from must.data.shards.listing import Chunk
from must.data.shards.workdir import Workdir

COPY = 8 << 20  # bytes per read while joining tars


@dataclass(frozen=True)
class ChunkTar:
    """A chunk's samples of one split, without those at the positions `drop`."""

    uri: str
    record: Path  # a local copy of the chunk's record
    chunk: int
    split: str
    samples: int  # without the dropped ones
    labelled: int  # with the dropped ones
    bytes: int
    sha256: str
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardJob:
    """The tars that become the shard `name`, in order."""

    name: str
    split: str
    tars: tuple[ChunkTar, ...]


def plan_shards(tars: Iterable[ChunkTar], split: str, samples_per_shard: int, first: int) -> list[ShardJob]:
    """Joins consecutive tars as long as they fit into a shard. Shards are numbered from `first`."""
    groups: list[list[ChunkTar]] = []
    for tar in tars:
        if tar.samples and (not groups or sum(t.samples for t in groups[-1]) + tar.samples > samples_per_shard):
            groups.append([])
        if tar.samples:
            groups[-1].append(tar)
    return [ShardJob(f"{split}-{n:06d}.tar", split, tuple(group)) for n, group in enumerate(groups, first)]


def assemble(job: ShardJob, output: str) -> Shard:
    """Writes a shard and its table of offsets."""
    offsets = [ChunkResult.read(tar.record).offsets[tar.split] for tar in job.tars]
    if len(job.tars) == 1 and not job.tars[0].drop:
        tar, table = job.tars[0], offsets[0]
        move_tar(tar.uri, storage.join(output, job.name), tar)
        sha256, size, labelled = tar.sha256, tar.bytes, tar.labelled
    else:
        sha256, size, labelled, table = join_tars(job, offsets, output)
    data = npy(table)
    shard = Shard(job.name, job.split, len(table), size, sha256, hashlib.sha256(data).hexdigest(), labelled)
    storage.write_bytes(storage.join(output, shard.offsets_name), data)
    return shard


def move_tar(source: str, target: str, tar: ChunkTar) -> None:
    """Renames a tar, unless an earlier run has done so before it was killed."""
    try:
        storage.move(source, target)
    except FileNotFoundError:
        if not storage.exists(target) or storage.size(target) != tar.bytes:
            raise


def join_tars(job: ShardJob, offsets: list[np.ndarray], output: str) -> tuple[str, int, int, np.ndarray]:
    """Writes the shard. Returns (sha256, bytes, labelled samples, offsets)."""
    tables, labelled = [], 0
    with storage.open_write(storage.join(output, job.name)) as file:
        writer = TarWriter(file)
        for tar, table in zip(job.tars, offsets, strict=True):
            starts, stops = table[:, 0] - BLOCKSIZE, -(-(table[:, 2] + table[:, 3]) // BLOCKSIZE) * BLOCKSIZE
            samples = np.setdiff1d(np.arange(len(table)), np.asarray(tar.drop, np.int64))
            labelled += tar.labelled
            for sample in tar.drop:
                text = storage.read_bytes(tar.uri, int(table[sample, 2]), int(table[sample, 3]))
                labelled -= json.loads(text)["label"] is not None
            for run in np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1):  # consecutive samples
                start, stop = int(starts[run[0]]), int(stops[run[-1]])
                tables.append(table[run] + np.array([1, 0, 1, 0]) * (writer.position - start))
                for offset in range(start, stop, COPY):
                    writer.add_raw(storage.read_bytes(tar.uri, offset, min(COPY, stop - offset)))
        writer.close()
    return writer.file.sha256, writer.position, labelled, np.concatenate(tables)


class Pool(Workers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__)

    def process_chunks(self, chunks: list[Chunk], config: ShardConfig, work: Workdir) -> Iterator[tuple[int, int]]:
        """Processes chunks in any order; yields their numbers of files and of rejected ones.

        If a file ends its worker, by time or a crash, its chunk is redone without it.
        Raises KilledWorkerError: something else has killed a worker; names the files that were being processed.
        """

        def retry(job: Job, exit_code: int | None, note: bytes) -> Job:
            chunk, *others, rejected = job
            why, position = describe_exit(exit_code, config.max_pixels), int(note.split(b" ")[0] or -1)
            if why and position >= 0 and position not in rejected:
                return (chunk, *others, {**rejected, position: why})
            names = [text.partition(b" ")[2].decode("utf-8", "surrogateescape") for text in self.notes()]
            raise KilledWorkerError(f"; it was at one of: {', '.join(sorted(names))}" if names else "")

        jobs: list[Job] = [(chunk, config, work.uri, work.records, {}) for chunk in chunks]
        return self.run(process_chunk, jobs, retry)

    def assemble(self, jobs: list[ShardJob], work: Workdir) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        shards = self.run(assemble, [(job, work.output) for job in jobs])
        by_name = {shard.name: shard for shard in shards}
        return [by_name[job.name] for job in jobs]
