"""Processes that do units and assemble shards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from must.format.index import Shard
from must.image.quiet import silence_pillow
from must.shards.assemble import ShardJob, assemble
from must.shards.chunk import Settings, Unit, do_unit
from must.shards.whereabouts import forget, left_at
from must.shards.workdir import Work
from must.storage import LaterError

SHOWN = 8  # files that a killed worker may have been at


class KilledWorkerError(LaterError):
    """A worker process is gone, and has said nothing."""


class Done(NamedTuple):
    """What the progress bar needs to know of a unit."""

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
            # Forking needs no importable main module, so scripts and notebooks can call `shard` without a guard.
            method = "fork" if sys.platform == "linux" else "spawn"
            self.executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context(method), follow_parent, (os.getpid(),)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def do_units(self, units: list[Unit], settings: Settings, work: Work) -> Iterator[Done]:
        forget(work.records)
        try:
            yield from self.run(unit_job, [(unit, settings, work.uri, work.records) for unit in units])
        except KilledWorkerError as error:
            names = left_at(work.records)
            if not names:
                raise
            more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
            raise KilledWorkerError(f"{error}; it was at one of: {', '.join(names[:SHOWN])}{more}") from None

    def assemble(self, jobs: list[ShardJob], work: Work) -> list[Shard]:
        """The shards, in the order of `jobs`."""
        found = {
            shard.name: shard for shard in self.run(assemble, [(j, work.records, work.uri, work.output) for j in jobs])
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


def unit_job(unit: Unit, settings: Settings, work: str, records: Any) -> Done:
    record = do_unit(unit, settings, work, records)
    return Done(record.number, record.files, len(record.rejected), record.read_bytes)


def follow_parent(parent: int) -> None:
    """Ends a worker whose parent was killed: it would wait for work for ever. Signals are the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    silence_pillow()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
