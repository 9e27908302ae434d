"""The worker processes, which process chunks and assemble shards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from must.base.processes import begin_worker, start_context
from must.base.storage import TransientError
from must.data.format.index import Shard
from must.data.image.quiet import silence_pillow
from must.data.shards.assemble import ShardJob, assemble
from must.data.shards.breadcrumbs import files_in_progress, remove_all
from must.data.shards.chunk import Chunk, Settings, process_chunk
from must.data.shards.workdir import Workdir

SHOWN = 8  # files that a killed worker may have been at


class KilledWorkerError(TransientError):
    """A worker process is gone, and has said nothing."""


class Done(NamedTuple):
    """What the progress bar needs to know of a chunk."""

    number: int
    files: int
    rejected: int
    read_bytes: int


class Pool:
    """A context manager around the processes. With one worker everything happens in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        if self.workers > 1:
            self.executor = ProcessPoolExecutor(
                self.workers, start_context(__name__), follow_parent, (dict(os.environ),)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def process_chunks(self, chunks: list[Chunk], settings: Settings, work: Workdir) -> Iterator[Done]:
        remove_all(work.local)
        try:
            yield from self.run(
                chunk_job, [(chunk, settings, work.units, work.records, work.local) for chunk in chunks]
            )
        except KilledWorkerError as error:
            names = files_in_progress(work.local)
            if not names:
                raise
            more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
            raise KilledWorkerError(f"{error}; it was at one of: {', '.join(names[:SHOWN])}{more}") from None

    def assemble(self, jobs: list[ShardJob], work: Workdir) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        found = {
            shard.name: shard
            for shard in self.run(assemble, [(j, work.records, work.units, work.output) for j in jobs])
        }
        return [found[job.name] for job in jobs]

    def run(self, function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
        """Results as they come. The first error ends it; what is under way then finishes, what waits is cancelled."""
        if self.executor is None:
            for values in arguments:
                yield function(*values)
            return
        try:
            waiting: set[Future[Any]] = {self.executor.submit(function, *values) for values in arguments}
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        except BrokenProcessPool:
            raise KilledWorkerError(
                "a worker process was killed, most likely because the memory was full; "
                "run the same command again to go on where it was, with fewer --workers"
            ) from None


def chunk_job(chunk: Chunk, settings: Settings, work: str, records: Path, crumbs: Path) -> Done:
    record = process_chunk(chunk, settings, work, records, crumbs)
    return Done(record.number, record.files, len(record.rejected), record.read_bytes)


def follow_parent(environment: dict[str, str]) -> None:
    """Prepares a worker: it ends with its parent, whose the signals are to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
    silence_pillow()
