"""Makes shards of the chunks' pieces: renames one, or joins small ones and those with dropped samples; the workers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from must.base import storage
from must.base.console import silence_pillow
from must.base.workers import Job, JobWorkers, KilledWorkerError
from must.config import ShardConfig
from must.data.format.index import Shard
from must.data.image.bounds import fault_of
from must.data.shards.chunk import (
    ChunkResult,
    TarWriter,
    files_in_progress,
    npy,
    piece_name,
    position_in_progress,
    process_chunk,
    record_name,
    remove_progress_files,
)
from must.data.shards.listing import Chunk
from must.data.shards.workdir import Workdir

COPY = 8 << 20  # bytes per read while joining pieces


@dataclass(frozen=True)
class Piece:
    """A chunk's samples of one split, without those at the positions `drop`."""

    chunk: int
    split: str
    samples: int  # without the dropped ones
    labelled: int  # with the dropped ones
    bytes: int
    sha256: str
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardJob:
    """The pieces that become the shard `name`, in order."""

    name: str
    split: str
    pieces: tuple[Piece, ...]


def plan_shards(pieces: Iterator[Piece], split: str, samples_per_shard: int, first: int) -> Iterator[ShardJob]:
    """Joins consecutive pieces as long as they fit into a shard. Shards are numbered from `first`."""
    waiting: list[Piece] = []
    number = first
    for piece in pieces:
        if piece.samples == 0:
            continue
        if waiting and sum(p.samples for p in waiting) + piece.samples > samples_per_shard:
            yield ShardJob(f"{split}-{number:06d}.tar", split, tuple(waiting))
            waiting, number = [], number + 1
        waiting.append(piece)
    if waiting:
        yield ShardJob(f"{split}-{number:06d}.tar", split, tuple(waiting))


def assemble(job: ShardJob, records: Path, work: str, output: str) -> Shard:
    """Writes a shard and its table of offsets. `records` is the local folder of the chunks' records."""
    offsets = [ChunkResult.read(records / record_name(piece.chunk)).offsets[piece.split] for piece in job.pieces]
    if len(job.pieces) == 1 and not job.pieces[0].drop:
        piece, table = job.pieces[0], offsets[0]
        move_piece(storage.join(work, piece_name(piece.chunk, piece.split)), storage.join(output, job.name), piece)
        sha256, size, labelled = piece.sha256, piece.bytes, piece.labelled
    else:
        sha256, size, labelled, table = join_pieces(job, offsets, work, output)
    data = npy(table)
    shard = Shard(job.name, job.split, len(table), size, sha256, hashlib.sha256(data).hexdigest(), labelled)
    storage.write_bytes(storage.join(output, shard.offsets_name), data)
    return shard


def move_piece(source: str, target: str, piece: Piece) -> None:
    """Renames a piece, unless an earlier run has done so before it was killed."""
    try:
        storage.move(source, target)
    except FileNotFoundError:
        if not storage.exists(target) or storage.size(target) != piece.bytes:
            raise


def join_pieces(job: ShardJob, offsets: list[np.ndarray], work: str, output: str) -> tuple[str, int, int, np.ndarray]:
    """Writes the shard. Returns (sha256, bytes, labelled samples, offsets)."""
    tables, labelled = [], 0
    with storage.open_write(storage.join(output, job.name)) as file:
        writer = TarWriter(file)
        for piece, table in zip(job.pieces, offsets, strict=True):
            path = storage.join(work, piece_name(piece.chunk, piece.split))
            starts, stops = table[:, 0] - BLOCKSIZE, -(-(table[:, 2] + table[:, 3]) // BLOCKSIZE) * BLOCKSIZE
            samples = np.setdiff1d(np.arange(len(table)), np.asarray(piece.drop, np.int64))
            labelled += piece.labelled
            for sample in piece.drop:
                text = storage.read_bytes(path, int(table[sample, 2]), int(table[sample, 3]))
                labelled -= json.loads(text)["label"] is not None
            for run in np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1):  # consecutive samples
                start, stop = int(starts[run[0]]), int(stops[run[-1]])
                tables.append(table[run] + np.array([1, 0, 1, 0]) * (writer.position - start))
                for offset in range(start, stop, COPY):
                    writer.add_raw(storage.read_bytes(path, offset, min(COPY, stop - offset)))
        writer.close()
    return writer.file.sha256, writer.position, labelled, np.concatenate(tables)


class Pool(JobWorkers):
    def __init__(self, workers: int) -> None:
        super().__init__(workers, __name__, silence_pillow)

    def process_chunks(self, chunks: list[Chunk], config: ShardConfig, work: Workdir) -> Iterator[tuple[int, int]]:
        """Processes chunks in any order; yields their numbers of files and of rejected ones.

        If a file ends its worker, by time or a crash, its chunk is redone without it.
        Raises KilledWorkerError: something else has killed a worker; names the files that were being processed.
        """
        remove_progress_files(work.local)

        def retry(job: Job, exit_code: int | None) -> Job:
            chunk, *others, rejected = job
            position, why = position_in_progress(work.local, chunk.number), fault_of(exit_code, config.max_pixels)
            if position is None or position in rejected or not why:
                raise KilledWorkerError
            return (chunk, *others, {**rejected, position: why})

        jobs: list[Job] = [(chunk, config, work.chunks, work.records, work.local, {}) for chunk in chunks]
        try:
            yield from self.unordered(process_chunk, jobs, retry)
        except KilledWorkerError as error:
            names = files_in_progress(work.local)
            if not names:
                raise
            raise KilledWorkerError(f"{error}; it was at one of: {', '.join(names)}") from None

    def assemble(self, jobs: list[ShardJob], work: Workdir) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        shards = self.unordered(assemble, [(job, work.records, work.chunks, work.output) for job in jobs])
        by_name = {shard.name: shard for shard in shards}
        return [by_name[job.name] for job in jobs]
