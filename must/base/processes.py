"""Worker processes: how they start and end, and which open files of its parent a forked process closes; a thread that
calls a function periodically; the cores and the memory of this machine.

Only this module selects the start method. Arguments of workers can be pickled, so all methods work:
MUST_START_METHOD selects one (fork, forkserver, spawn), else the program's own `multiprocessing.set_start_method`.
Without either, workers are forked on Linux, whatever Python's default is: fork needs no importable main module, so
scripts and notebooks can shard and train without `if __name__ == "__main__"`."""

import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from must.base.console import silence_pillow
from must.base.errors import UserError

METHOD = "MUST_START_METHOD"
Value = TypeVar("Value")

_open: set[int] = set()
PARENT = "MUST_PARENT"  # environment variable: the id of the process with which this one ends


def start_context(preload: str) -> BaseContext:
    """The multiprocessing context of workers. A fork server imports the module `preload` once for all of them."""
    method = os.environ.get(METHOD) or multiprocessing.get_start_method(allow_none=True)
    method = method or ("fork" if sys.platform == "linux" else "spawn")
    known = multiprocessing.get_all_start_methods()
    if method not in known:
        raise UserError(f"{METHOD}={method}: no such start method; known are {', '.join(known)}")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", preload])
        # A SIGTERM to the process group must not end the fork server, and so all workers, before the program has saved.
        resource_tracker.ensure_running()  # first, because it unblocks the signal when it has started
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


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


def child_environment() -> dict[str, str]:
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


def begin_worker(environment: dict[str, str]) -> None:
    """Sets up a worker process, which ends when its parent has ended.
    `environment`: the parent's current `os.environ`; a fork server has the one of its own start."""
    if dict(os.environ) != environment:  # a forked worker has it, and must not wait for a lock of the parent's threads
        os.environ.clear()
        os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # blocked in a fork server
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
def every(
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
PROCESS_MEMORY = 100_000_000  # bytes: what a process that decodes images takes at least


def check_processes(count: int, flag: str) -> None:
    """Raises ValueError: so many processes are more than the cores and the memory of this machine are for."""
    world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    most = max(2, min(PROCESSES_PER_CORE * cores(), memory_bytes() // PROCESS_MEMORY) // world)
    if count > most:
        raise UserError(f"{flag} {count}: more than the {most} that this machine has the cores and the memory for")


def memory_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory of the machine, or of its container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # both versions of control groups
        with suppress(OSError, ValueError):  # no container, or no limit: "max"
            memory = min(memory, int((groups / name).read_text()))
    return memory


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The CPU cores, at least 1. The limit of a container is a quota of time, which the CPU affinity does not show."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # both versions of control groups
        with suppress(OSError, ValueError):  # no container, or no limit: "max"
            quota, period = " ".join((groups / name).read_text() for name in names).split()
            if int(quota) > 0:
                available = min(available, int(quota) // int(period))
    return max(1, available)


def describe_machine() -> list[str]:
    """What the speed of a training depends on here: processor, cores, Nvidia's GPUs, torch's version. Without torch."""
    facts = [f"{cores()} cores", os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(Path("/dev/dxg").exists())]
    with suppress(importlib.metadata.PackageNotFoundError):
        facts.append(f"torch {importlib.metadata.version('torch')}")
    files = [Path("/proc/cpuinfo"), *sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    texts = (file.read_text() for file in files if file.exists())
    return [*facts, *(found[0] for text in texts if (found := re.search(r"^model(?: name|:).*", text, re.M | re.I)))]
