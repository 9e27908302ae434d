"""A pool of worker processes whose errors mean what they would mean in this process."""

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Self

from must.base.errors import TransientError
from must.base.processes import begin_worker, start_context

AHEAD = 2  # results a worker that `in_order` has made before they are asked for


class KilledWorkerError(TransientError):
    """A worker process died without an error message, as one does that the kernel kills for its memory."""

    def __init__(self, text: str = "") -> None:
        super().__init__(
            text
            or "a worker process was killed, most likely because the memory was full; "
            "run the same command again to go on where it was, with fewer --workers"
        )


class Workers:
    """A context manager around the processes. With one worker everything happens in this process.

    What a worker raises is raised here, by `unordered` and `in_order`. Of a killed one it is a KilledWorkerError.

    Args:
        preload: the module that a fork server imports once for all workers: the caller's.
        begin: called in each new process.
    """

    def __init__(self, workers: int, preload: str, begin: Callable[[], object] = int) -> None:
        self.workers, self.preload, self.begin = workers, preload, begin
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.workers > 1:
            self.executor = ProcessPoolExecutor(
                self.workers, start_context(self.preload), begin_in_pool, (dict(os.environ), self.begin)
            )
            collecting = gc.isenabled()
            gc.disable()  # nor may a new process collect anything before `begin_in_pool` has begun
            try:
                self.executor.submit(int)  # they start now, before this process has threads of a model's
            finally:
                if collecting:
                    gc.enable()
        return self

    def __exit__(self, *error: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def unordered(self, function: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> Iterator[Any]:
        """Results as they come. The first error ends it; what is under way then finishes, what waits is cancelled."""
        if self.executor is None:
            yield from (function(*job) for job in jobs)
            return
        with killed_workers():
            waiting: set[Future[Any]] = {self.executor.submit(function, *job) for job in jobs}
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()

    def in_order(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results in the order of the jobs; a few are in memory at once."""
        if self.executor is None:
            yield from (function(*job) for job in jobs)
            return
        waiting: deque[Future[Any]] = deque()
        with killed_workers():
            for job in jobs:
                waiting.append(self.executor.submit(function, *job))
                if len(waiting) > AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@contextmanager
def killed_workers() -> Iterator[None]:
    """A killed worker of a pool, or a killed loader of torch's, ends the block with a KilledWorkerError.

    Torch tells of a loader that died in a RuntimeError, from a signal's handler: it comes wherever the program is.
    """
    try:
        yield
    except BrokenProcessPool:
        raise KilledWorkerError from None
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader worker") and ("exited unexpectedly" in text or "killed by signal" in text):
            raise KilledWorkerError from None
        raise


def begin_in_pool(environment: dict[str, str], begin: Callable[[], object]) -> None:
    """Prepares a worker: it exits with its parent, which handles signals.

    What it has of its parent is never collected here: a session of onnxruntime would wait for its threads, which
    a forked process does not have.
    """
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
    begin()
