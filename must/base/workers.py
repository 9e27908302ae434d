"""Worker processes whose exceptions are raised in this process."""

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import _ExceptionWithTraceback
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Self, cast

from must.base.errors import TransientError
from must.base.processes import begin_worker, start_context, without_collector

TASKS_AHEAD = 2  # jobs per worker that `in_order` begins before their results are needed
NOTE_BYTES = 1000


class KilledWorkerError(TransientError):
    """A worker process died without an error message, for example killed by the kernel because memory was full."""

    def __init__(self, text: str = "") -> None:
        super().__init__(
            "a worker process was killed, most likely because the memory was full; "
            f"run the same command again to go on where it was, with fewer --workers{text}"
        )


Job = tuple[Any, ...]
Again = Callable[[Job, int | None, bytes], Job]


def no_more(job: Job, exit_code: int | None, note: bytes) -> Job:
    raise KilledWorkerError


class Worker(NamedTuple):
    process: Any
    connection: Connection
    note: Any  # shared memory with the last `write_note` of its job


class Workers:
    """A context manager for processes that do one job at a time. A process that dies is replaced; the others continue.

    A worker's exception is raised in this process.

    Args:
        preload: the module that a fork server imports once for all workers: the caller's module.
        begin: called in each new process.
    """

    def __init__(self, workers: int, preload: str, begin: Callable[[], object] = int) -> None:
        self.workers, self.preload, self.begin = workers, preload, begin
        self.all: list[Worker] = []
        self.free: list[Worker] = []
        self.busy: dict[Connection, tuple[Worker, int, Callable[..., Any], Job]] = {}  # what each does

    def __enter__(self) -> Self:
        if self.workers > 1:  # now, before a model starts threads in this process
            self.free += [self.start() for _ in range(self.workers)]
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until the current jobs are done."""
        for worker in self.all:
            with suppress(OSError):
                worker.connection.send(None)
        for worker in list(self.all):
            with suppress(EOFError, OSError):
                while True:
                    worker.connection.recv()
            self.end(worker)

    def in_order(self, function: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[Any]:
        """Yields the results in the order of the jobs; only a few are in memory at once. With one worker everything
        runs in this process. Raises KilledWorkerError."""
        if self.workers < 2:
            yield from (function(*job) for job in jobs)
            return
        remaining, results, first, stop = iter(jobs), dict[int, Any](), 0, 0
        while True:
            if self.busy:
                results |= self.receive(no_more, 0 if first in results else None)
            while self.free and stop < first + TASKS_AHEAD * self.workers and (job := next(remaining, None)):
                self.send(stop, function, job)
                stop += 1
            if first == stop:
                return
            if first in results:
                yield take_result(*results.pop(first))
                first += 1

    def unordered(self, function: Callable[..., Any], jobs: list[Job], again: Again = no_more) -> Iterator[Any]:
        """Yields the results as they complete.
        `again`: called with the job of a worker that has died, its exit code and its last note; returns the job to do
        instead."""
        pending = deque(enumerate(jobs))
        while pending or self.busy:
            while pending and (self.free or len(self.all) < self.workers):
                number, job = pending.popleft()
                self.send(number, function, job)
            for _, response in self.receive(again):
                yield take_result(*response)

    def send(self, number: int, function: Callable[..., Any], job: Job) -> None:
        worker = self.free.pop() if self.free else self.start()
        self.busy[worker.connection] = worker, number, function, job
        with suppress(OSError):  # the worker has died; `receive` notices it
            worker.connection.send((function, job))

    def receive(self, again: Again, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        """(number, (result, error)) of jobs that are done; waits for one."""
        for connection in cast(list[Connection], wait(list(self.busy), timeout)):
            worker, number, function, job = self.busy.pop(connection)
            try:
                response = connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                job = again(job, worker.process.exitcode, worker.note.value)
                self.end(worker)
                self.send(number, function, job)
                continue
            self.free.append(worker)
            yield number, response

    def notes(self) -> list[bytes]:
        """The last notes of the jobs that are not done."""
        return [note for worker in self.all if (note := worker.note.value)]

    def start(self) -> Worker:
        context: Any = start_context(self.preload)
        connection, worker_end = context.Pipe()
        note = context.RawArray("c", NOTE_BYTES)
        process = context.Process(target=do_jobs, args=(worker_end, note, dict(os.environ), self.begin))
        with without_collector():  # a new process must not collect anything before `do_jobs` freezes it
            process.start()
        worker_end.close()  # so that `recv` raises EOFError when the worker ends
        self.all.append(Worker(process, connection, note))
        return self.all[-1]

    def end(self, worker: Worker) -> None:
        """Removes a worker that has died or was told to end."""
        self.all.remove(worker)
        worker.process.join()
        worker.connection.close()
        worker.process.close()


def take_result(result: Any, error: Exception | None) -> Any:
    if error is not None:
        raise error
    return result


_note: Any = None  # of this worker


def write_note(text: bytes) -> None:
    """In a worker: leaves a note of what its job does now, which the parent can read if the worker dies."""
    _note.value = text[:NOTE_BYTES]


def do_jobs(connection: Connection, note: Any, environment: dict[str, str], begin: Callable[[], object]) -> None:
    """The main function of a worker: does jobs until it receives None. It exits with its parent."""
    global _note
    _note = note
    gc.freeze()  # deleting the parent's session of onnxruntime would wait for threads that a forked process has not
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
    begin()
    while (message := connection.recv()) is not None:
        function, job = message
        try:
            response: tuple[Any, Any] = function(*job), None
        except Exception as error:
            assert error.__traceback__ is not None
            response = None, _ExceptionWithTraceback(error, error.__traceback__)
        write_note(b"")
        connection.send(response)


@contextmanager
def killed_workers() -> Iterator[None]:
    """Raises KilledWorkerError if a worker of torch's DataLoader was killed during the block.

    Torch raises a RuntimeError in a signal handler, so it can come at any statement.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader worker") and ("exited unexpectedly" in text or "killed by signal" in text):
            raise KilledWorkerError from None
        raise
