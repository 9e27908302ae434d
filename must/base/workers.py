"""Worker processes whose errors mean what they would mean in this process."""

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
from must.base.processes import begin_worker, start_context

TASKS_AHEAD = 2  # results a worker that `in_order` has made before they are asked for


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

    What a worker raises is raised here, by `in_order`. Of a killed one it is a KilledWorkerError.

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

    def in_order(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results in the order of the jobs; a few are in memory at once."""
        if self.executor is None:
            yield from (function(*job) for job in jobs)
            return
        waiting: deque[Future[Any]] = deque()
        with killed_workers():
            for job in jobs:
                waiting.append(self.executor.submit(function, *job))
                if len(waiting) > TASKS_AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


Job = tuple[Any, ...]


def no_more(job: Job, exit_code: int | None) -> Job:
    raise KilledWorkerError


class JobWorkers:
    """A context manager around processes that do one job at a time. One that dies is replaced; the others go on.

    Args: as those of Workers.
    """

    def __init__(self, workers: int, preload: str, begin: Callable[[], object] = int) -> None:
        self.workers, self.preload, self.begin = workers, preload, begin
        self.free: list[Connection] = []
        self.busy: dict[Connection, Job] = {}
        self.processes: dict[Connection, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """What is under way finishes."""
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
        """Results as they come. What a worker raises is raised here, and ends it.
        `again`: called with the job of a worker that has died, and its exit code; returns the job to do instead."""
        waiting = deque(jobs)
        while waiting or self.busy:
            while waiting and (self.free or len(self.processes) < self.workers):
                connection = self.free.pop() if self.free else self.start()
                self.busy[connection] = waiting.popleft()
                with suppress(OSError):  # it has died, which shows below
                    connection.send((function, self.busy[connection]))
            for connection in cast(list[Connection], wait(list(self.busy))):
                job = self.busy.pop(connection)
                try:
                    result, error = connection.recv()
                except (EOFError, OSError):
                    waiting.appendleft(again(job, self.ended(connection)))
                    continue
                self.free.append(connection)
                if error is not None:
                    raise error
                yield result

    def start(self) -> Connection:
        context: Any = start_context(self.preload)
        ours, theirs = context.Pipe()
        process = context.Process(target=do_jobs, args=(theirs, dict(os.environ), self.begin))
        collecting = gc.isenabled()
        gc.disable()  # nor may a new process collect anything before `begin_in_pool` has begun
        try:
            process.start()
        finally:
            if collecting:
                gc.enable()
        theirs.close()  # so that its end shows here
        self.processes[ours] = process
        return ours

    def ended(self, connection: Connection) -> int | None:
        """The exit code of a worker that has died or was told to end."""
        process = self.processes.pop(connection)
        process.join()
        connection.close()
        code = process.exitcode
        process.close()
        return code


def do_jobs(connection: Connection, environment: dict[str, str], begin: Callable[[], object]) -> None:
    """What a process of JobWorkers does until it is told to end."""
    begin_in_pool(environment, begin)
    while (message := connection.recv()) is not None:
        function, job = message
        try:
            answer: tuple[Any, Any] = function(*job), None
        except Exception as error:
            assert error.__traceback__ is not None
            answer = None, _ExceptionWithTraceback(error, error.__traceback__)
        connection.send(answer)


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
