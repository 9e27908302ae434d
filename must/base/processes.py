"""Worker processes: their start and end, which open files of its parent a forked process closes; exceptions in them are
raised in this process. A thread that calls a function periodically; this machine's cores.

Workers are forked on Linux, whatever Python's default is: fork needs no importable main module, so scripts and
notebooks can shard and train without a guard for `__main__`. Their arguments can be pickled, for spawn elsewhere."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import _ExceptionWithTraceback
from contextlib import contextmanager, suppress
from multiprocessing import connection, current_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast

from must.base.console import silence_pillow
from must.base.errors import TransientError, UserError

Value = TypeVar("Value")

_open: set[int] = set()
PARENT = "MUST_PARENT"  # environment variable: the id of the process with which this one ends


CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # of workers


def end_with_parent() -> None:
    """Ends this process when its launcher ends, however that ends: else it would train on beside a retry's processes.

    Linux kills it when the parent dies after this call. If the parent died earlier, during this process's imports,
    another process than PARENT is the parent now."""
    parent = os.environ.pop(PARENT, "")
    if sys.platform == "linux":
        set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
        if parent and os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGKILL)


def make_child_environment() -> dict[str, str]:
    """The environment of a child process that calls `end_with_parent`."""
    return os.environ | {PARENT: str(os.getpid())}


def is_running(pid: int) -> bool:
    """Whether a process of this host runs; a zombie counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:  # no such process; or there is no /proc, or it hides those of other users
        try:
            os.kill(pid, 0)
            return True
        except PermissionError:
            return True
        except (ProcessLookupError, OverflowError):
            return False


def begin_worker() -> None:
    """Sets up a worker process, which ends when its parent has ended."""
    silence_pillow()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def without_collector() -> Iterator[None]:
    """Turns the garbage collector off while the block runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_from_children(descriptor: int) -> int:
    """Makes forked processes close this open file when they start: they would share its lock. Close it with `close`."""
    _open.add(descriptor)
    return descriptor


def close(descriptor: int) -> None:
    """Closes a file of `keep_from_children`."""
    _open.discard(descriptor)
    os.close(descriptor)


def _close_parents() -> None:
    while _open:
        os.close(_open.pop())


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_close_parents)


class per_process(Generic[Value]):  # noqa: N801 - a decorator
    """A cache of a function's results by process and arguments, so that a forked process shares no connection.

    A child never drops its parent's values: closing one may wait for a lock that a thread of the parent held."""

    LARGEST = 4  # values of a process

    def __init__(self, make: Callable[..., Value]) -> None:
        self.__wrapped__ = make
        self.cache: dict[tuple[Any, ...], Value] = {}

    def __call__(self, *arguments: Any) -> Value:
        key = (os.getpid(), *arguments)
        if (value := self.cache.get(key)) is None:
            value = self.cache[key] = self.__wrapped__(*arguments)
            self.drop(self.LARGEST)
        return value

    def drop(self, keep: int = 0) -> None:
        """Drops this process's values, except the `keep` newest."""
        keys = [key for key in list(self.cache) if key[0] == os.getpid()]
        for key in keys[: max(0, len(keys) - keep)]:
            self.cache.pop(key, None)


class DaemonThreads(ThreadPoolExecutor):
    """Starts a thread for each call, for which nothing waits: it may wait for a store. A program of must ends without
    Python's own end while one runs (`exiting`), which would abort torch's and onnxruntime's code in it."""

    running: ClassVar[set[Future[Any]]] = set()  # of all instances

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()

        def run() -> None:
            result, failure = None, None
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                failure = error
            self.running.discard(future)  # before anybody gets the result
            if failure:
                future.set_exception(failure)
            else:
                future.set_result(result)

        self.running.add(future)
        future.set_running_or_notify_cancel()
        threading.Thread(target=run, daemon=True).start()
        return future


LONGEST_JOIN = 60.0  # seconds: a write to a slow bucket must not end after the last one
LONGEST_END = 3.0  # seconds that a program which ends by a signal waits for its threads and processes


@contextmanager
def run_periodically(
    seconds: float,
    work: Callable[[], object],
    last: Callable[[], object] | None = None,
    at_once: threading.Event | None = None,
) -> Iterator[None]:
    """Calls `work` every `seconds` while the block runs, then `last`, and waits for the thread for LONGEST_JOIN, or for
    `seconds` if that is more; for LONGEST_END if the program ends.

    Both must handle their errors: an exception would end the thread without a message.
    Setting the event `at_once` makes the thread call `work` immediately."""
    stopped, wake = threading.Event(), at_once or threading.Event()

    def run() -> None:
        while True:
            wake.wait(seconds)
            wake.clear()
            if stopped.is_set():
                break
            work()
        if last:
            last()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    longest = max(seconds, LONGEST_JOIN)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        longest = LONGEST_END
        raise
    finally:
        stopped.set()
        wake.set()
        thread.join(longest)


PROCESSES_PER_CORE = 16


def check_processes(count: int, flag: str) -> None:
    """Raises ValueError: so many processes are more than the cores of this machine are for."""
    most = max(2, PROCESSES_PER_CORE * count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if count > most:
        raise UserError(f"{flag} {count}: more than the {most} that this machine has the cores for")


def count_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The CPU cores, at least 1. The limit of a container is a quota of time, which the CPU affinity does not show."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # both versions of control groups
        with suppress(OSError, ValueError):  # no container, or no limit: "max"
            quota, period = " ".join((groups / name).read_text() for name in names).split()
            if int(quota) > 0:
                available = min(available, int(quota) // int(period))
    return max(1, available)


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

    A worker's exception is raised in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
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
        for ready in cast(list[Connection], wait(list(self.busy))):
            worker, function, job = self.busy[ready]
            try:
                response = ready.recv()
            except (EOFError, OSError):
                worker.process.join()
                if again is None:
                    raise KilledWorkerError from None
                job = again(job, worker.process.exitcode, worker.note.value)
                del self.busy[ready]
                end(worker)
                self.send(function, job)
                continue
            del self.busy[ready]
            self.free.append(worker)
            yield response

    def notes(self) -> list[bytes]:
        """The last notes of the jobs that are not done."""
        return [note for worker, *_ in self.busy.values() if (note := worker.note.value)]

    def start(self) -> Worker:
        connection, worker_end = CONTEXT.Pipe()
        note = CONTEXT.RawArray("c", NOTE_BYTES)
        process = CONTEXT.Process(target=do_jobs, args=(worker_end, note))
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


def do_jobs(connection: Connection, note: Any) -> None:
    """The main function of a worker: does jobs until it receives None. It exits with its parent."""
    global _note
    _note = note
    if type(current_process()).__name__ == "ForkProcess":
        gc.freeze()  # deleting the parent's session of onnxruntime would wait for threads that this process has not
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin_worker()
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
