"""Worker processes whose exceptions are raised in this process."""

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool, _ExceptionWithTraceback
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Self, cast

from must.base.errors import TransientError
from must.base.processes import begin_worker, start_context, without_collector

TASKS_AHEAD = 2  # tasks per worker that `in_order` submits before their results are needed


class KilledWorkerError(TransientError):
    """A worker process died without an error message, for example killed by the kernel because memory was full."""

    def __init__(self, text: str = "") -> None:
        super().__init__(
            text
            or "a worker process was killed, most likely because the memory was full; "
            "run the same command again to go on where it was, with fewer --workers"
        )


class Workers:
    """A context manager for a pool of worker processes. With one worker everything runs in this process.

    `in_order` raises a worker's exception in this process, and KilledWorkerError for a killed worker.

    Args:
        preload: the module that a fork server imports once for all workers: the caller's module.
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
            with without_collector():  # a new process must not collect anything before `begin_in_pool`
                self.executor.submit(int)  # starts the workers now, before a model starts threads in this process
        return self

    def __exit__(self, *error: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def in_order(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yields the results in the order of the jobs; only a few are in memory at once."""
        if self.executor is None:
            yield from (function(*job) for job in jobs)
            return
        pending: deque[Future[Any]] = deque()
        with killed_workers():
            for job in jobs:
                pending.append(self.executor.submit(function, *job))
                if len(pending) > TASKS_AHEAD * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


Job = tuple[Any, ...]


def no_more(job: Job, exit_code: int | None) -> Job:
    raise KilledWorkerError


class JobWorkers:
    """A context manager for processes that do one job at a time. A process that dies is replaced; the others continue.

    Args: the same as of Workers.
    """

    def __init__(self, workers: int, preload: str, begin: Callable[[], object] = int) -> None:
        self.workers, self.preload, self.begin = workers, preload, begin
        self.free: list[Connection] = []
        self.busy: dict[Connection, Job] = {}
        self.processes: dict[Connection, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until the current jobs are done."""
        for connection in self.processes:
            with suppress(OSError):
                connection.send(None)
        for connection in list(self.processes):
            with suppress(EOFError, OSError):
                while True:
                    connection.recv()
            self.ended(connection)

    def unordered(
        self, function: Callable[..., Any], jobs: list[Job], again: Callable[[Job, int | None], Job] = no_more
    ) -> Iterator[Any]:
        """Yields the results as they complete. Raises a worker's exception and ends then.
        `again`: called with the job of a worker that has died, and its exit code; returns the job to do instead."""
        pending = deque(jobs)
        while pending or self.busy:
            while pending and (self.free or len(self.processes) < self.workers):
                connection = self.free.pop() if self.free else self.start()
                self.busy[connection] = pending.popleft()
                with suppress(OSError):  # the worker has died; `recv` below notices it
                    connection.send((function, self.busy[connection]))
            for connection in cast(list[Connection], wait(list(self.busy))):
                job = self.busy.pop(connection)
                try:
                    result, error = connection.recv()
                except (EOFError, OSError):
                    pending.appendleft(again(job, self.ended(connection)))
                    continue
                self.free.append(connection)
                if error is not None:
                    raise error
                yield result

    def start(self) -> Connection:
        context: Any = start_context(self.preload)
        connection, worker_end = context.Pipe()
        process = context.Process(target=do_jobs, args=(worker_end, dict(os.environ), self.begin))
        with without_collector():  # a new process must not collect anything before `begin_in_pool`
            process.start()
        worker_end.close()  # so that `recv` raises EOFError when the worker ends
        self.processes[connection] = process
        return connection

    def ended(self, connection: Connection) -> int | None:
        """Removes a worker that has died or was told to end; returns its exit code."""
        process = self.processes.pop(connection)
        process.join()
        connection.close()
        code = process.exitcode
        process.close()
        return code


def do_jobs(connection: Connection, environment: dict[str, str], begin: Callable[[], object]) -> None:
    """The main function of a process of JobWorkers: does jobs until it receives None."""
    begin_in_pool(environment, begin)
    while (message := connection.recv()) is not None:
        function, job = message
        try:
            response: tuple[Any, Any] = function(*job), None
        except Exception as error:
            assert error.__traceback__ is not None
            response = None, _ExceptionWithTraceback(error, error.__traceback__)
        connection.send(response)


@contextmanager
def killed_workers() -> Iterator[None]:
    """Raises KilledWorkerError if a worker of a pool, or of torch's DataLoader, was killed during the block.

    For a dead loader worker torch raises a RuntimeError in a signal handler, so it can come at any statement.
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
    """Prepares a worker: it exits with its parent, and the parent handles SIGINT.

    Objects of the parent are never garbage collected in the worker: deleting a session of onnxruntime would wait for
    its threads, which a forked process does not have.
    """
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
    begin()
