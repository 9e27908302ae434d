"""Worker processes whose exceptions are raised in this process."""

import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import _ExceptionWithTraceback
from contextlib import contextmanager, suppress
from multiprocessing import current_process
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Self, cast

from must.base.errors import TransientError
from must.base.processes import LONGEST_END, begin_worker, start_context, without_collector

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


class Worker(NamedTuple):
    process: Any
    connection: Connection
    note: Any  # shared memory with the last `write_note` of its job


class Workers:
    """A context manager for processes that do one job at a time. A process that dies is replaced; the others continue.

    A worker's exception is raised in this process.
    `preload`: the module that a fork server imports once for all workers: the caller's module."""

    def __init__(self, workers: int, preload: str) -> None:
        self.workers, self.preload = workers, preload
        self.free: list[Worker] = []
        self.busy: dict[Connection, tuple[Worker, Callable[..., Any], Job]] = {}  # what each does

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Waits until the current jobs are done. If the program ends, for LONGEST_END: a job may wait for a store."""
        ends = time.monotonic() + LONGEST_END if error in (KeyboardInterrupt, SystemExit) else None
        workers = [*self.free, *(worker for worker, *_ in self.busy.values())]
        for worker in workers:
            with suppress(OSError):
                worker.connection.send(None)
        for worker in workers:
            with suppress(EOFError, OSError):
                while worker.connection.poll(ends and max(0.0, ends - time.monotonic())):
                    worker.connection.recv()
                worker.process.kill()
            end(worker)

    def run(self, function: Callable[..., Any], jobs: Iterable[Job], again: Again | None = None) -> Iterator[Any]:
        """Yields the results as they complete; only a few are in memory at once.

        `again`: called with the job of a worker that has died, its exit code and its last note; returns the job to do
        instead. Raises KilledWorkerError without it."""
        remaining, results = iter(jobs), list[tuple[Any, Any]]()
        while True:
            while len(self.busy) < self.workers and (job := next(remaining, None)):
                self.send(function, job)
            for result, error in results:
                if error is not None:
                    raise error
                yield result
            if not self.busy:
                return
            results = list(self.receive(again))

    def send(self, function: Callable[..., Any], job: Job) -> None:
        worker = self.free.pop() if self.free else self.start()
        self.busy[worker.connection] = worker, function, job
        with suppress(OSError):  # the worker has died; `receive` notices it
            worker.connection.send((function, job))

    def receive(self, again: Again | None) -> Iterator[tuple[Any, Any]]:
        """(result, error) of jobs that are done; waits for one."""
        for connection in cast(list[Connection], wait(list(self.busy))):
            worker, function, job = self.busy[connection]
            try:
                response = connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                if again is None:
                    raise KilledWorkerError from None
                job = again(job, worker.process.exitcode, worker.note.value)
                del self.busy[connection]
                end(worker)
                self.send(function, job)
                continue
            del self.busy[connection]
            self.free.append(worker)
            yield response

    def notes(self) -> list[bytes]:
        """The last notes of the jobs that are not done."""
        return [note for worker, *_ in self.busy.values() if (note := worker.note.value)]

    def start(self) -> Worker:
        context: Any = start_context(self.preload)
        connection, worker_end = context.Pipe()
        note = context.RawArray("c", NOTE_BYTES)
        process = context.Process(target=do_jobs, args=(worker_end, note, dict(os.environ)))
        with without_collector():  # a new process must not collect anything before `do_jobs` freezes it
            process.start()
        worker_end.close()  # so that `recv` raises EOFError when the worker ends
        return Worker(process, connection, note)


def end(worker: Worker) -> None:
    """Waits for a worker that has died or was told to end."""
    worker.process.join()
    worker.connection.close()
    worker.process.close()


_note: Any = None  # of this worker


def write_note(text: bytes) -> None:
    """In a worker: leaves a note of what its job does now, which the parent can read if the worker dies."""
    _note.value = text[:NOTE_BYTES]


def do_jobs(connection: Connection, note: Any, environment: dict[str, str]) -> None:
    """The main function of a worker: does jobs until it receives None. It exits with its parent."""
    global _note
    _note = note
    if type(current_process()).__name__ == "ForkProcess":
        gc.freeze()  # deleting the parent's session of onnxruntime would wait for threads that this process has not
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker(environment)
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

    Torch raises a RuntimeError in a signal handler, so it can come at any statement."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader worker") and ("exited unexpectedly" in text or "killed by signal" in text):
            raise KilledWorkerError from None
        raise
