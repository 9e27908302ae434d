"""Makes shards of the chunks' tars: renames one, or joins small ones and those with dropped samples; the workers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from must.base import storage
from must.base.console import silence_pillow
from must.base.workers import Job, KilledWorkerError, Workers
from must.config import ShardConfig
from must.data.format.index import Shard
from must.data.image.bounds import describe_exit
from must.data.shards.chunk import ChunkResult, TarWriter, npy, process_chunk
from must.data.shards.listing import Chunk
from must.data.shards.workdir import Workdir

COPY = 8 << 20  # bytes per read while joining tars


@dataclass(frozen=True)
class ShardJob:
    """The shard `name`: of these chunks, in order, the samples of one split."""

    name: str
    split: str
    chunks: list[tuple[int, list[int]]]  # (chunk, positions of the samples that are dropped, ascending)


def assemble(job: ShardJob, work: Workdir) -> Shard:
    """Writes a shard and its table of offsets."""
    (number, drop), *others = job.chunks
    target = storage.join(work.output, job.name)
    if drop or others:
        tar, table = join_tars(job, work, target)
    else:
        record = ChunkResult.read(work.record(number))
        tar, table = record.tars[job.split], record.offsets[job.split]
        move_tar(work.tar(number, job.split), target, tar["bytes"])
    data = npy(table)
    shard = Shard(job.name, job.split, len(table), offsets_sha256=hashlib.sha256(data).hexdigest(), **tar)
    storage.write_bytes(storage.join(work.output, shard.offsets_name), data)
    return shard


def move_tar(source: str, target: str, size: int) -> None:
    """Renames a tar, unless an earlier run has done so before it was killed."""
    try:
        storage.move(source, target)
    except FileNotFoundError:
        if not storage.exists(target) or storage.size(target) != size:
            raise


def join_tars(job: ShardJob, work: Workdir, target: str) -> tuple[dict[str, Any], np.ndarray]:
    """Writes the shard. Returns its sha256, bytes and labelled samples, and the table of offsets."""
    tables = []
    with storage.open_write(target) as file:
        writer = TarWriter(file)
        for number, drop in job.chunks:
            record, tar = ChunkResult.read(work.record(number)), work.tar(number, job.split)
            table = record.offsets[job.split]
            starts, stops = table[:, 0] - BLOCKSIZE, -(-(table[:, 2] + table[:, 3]) // BLOCKSIZE) * BLOCKSIZE
            writer.labelled += record.tars[job.split]["labelled"]
            for sample in drop:
                text = storage.read_bytes(tar, int(table[sample, 2]), int(table[sample, 3]))
                writer.labelled -= json.loads(text)["label"] is not None
            samples = np.delete(np.arange(len(table)), drop)
            for run in np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1):  # consecutive samples
                start, stop = int(starts[run[0]]), int(stops[run[-1]])
                tables.append(table[run] + np.array([1, 0, 1, 0]) * (writer.position - start))
                for offset in range(start, stop, COPY):
                    writer.add_raw(storage.read_bytes(tar, offset, min(COPY, stop - offset)))
        writer.close()
    return writer.describe(), np.concatenate(tables)


class Pool(Workers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__, silence_pillow)

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
        return self.unordered(process_chunk, jobs, retry)

    def assemble(self, jobs: list[ShardJob], work: Workdir) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        shards = self.unordered(assemble, [(job, work) for job in jobs])
        by_name = {shard.name: shard for shard in shards}
        return [by_name[job.name] for job in jobs]
