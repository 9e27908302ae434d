"""Worker processes: how they start and end, and what a forked one must not keep of its parent's.

This is the only place that knows of start methods. What a worker is given can be pickled, so all of them work:
MUST_START_METHOD chooses one (fork, forkserver, spawn), else the program's own `multiprocessing.set_start_method` does.
Without either, workers are forked on Linux, whatever Python's default is: that needs no importable main module, so
scripts and notebooks can shard and train without a guard.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Generic, TypeVar

from must.base.errors import UserError

METHOD = "MUST_START_METHOD"
Made = TypeVar("Made")

_open: set[int] = set()
PARENT = "MUST_PARENT"  # the environment's number of the process that this one is to end with


def start_context(preload: str) -> BaseContext:
    """The context to start workers from. A fork server imports the module `preload` once for all of them.
    Raises ValueError: MUST_START_METHOD names no start method of this system."""
    method = os.environ.get(METHOD) or multiprocessing.get_start_method(allow_none=True)
    method = method or ("fork" if sys.platform == "linux" else "spawn")
    known = multiprocessing.get_all_start_methods()
    if method not in known:
        raise UserError(f"{METHOD}={method}: no such start method; known are {', '.join(known)}")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", preload])
        # A SIGTERM to the whole group must not end the server, and with it all workers, before the program has saved.
        resource_tracker.ensure_running()  # first, as it unblocks the signal when it has started
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_with_parent() -> None:
    """Processes of a launcher are to end with it, however it ends: else they would train on beside those of a retry.

    Linux tells of a death that comes later. For one that came before, while this process was still importing, the
    parent gives its number as PARENT.
    """
    parent = os.environ.pop(PARENT, "")
    if sys.platform == "linux":
        set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
        if parent and not is_running(int(parent)):
            os.kill(os.getpid(), signal.SIGKILL)


def child_environment() -> dict[str, str]:
    """This process's environment for one that calls `end_with_parent`."""
    return os.environ | {PARENT: str(os.getpid())}


def is_running(pid: int) -> bool:
    """Whether a process of this host runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return not Path("/proc").exists()  # another system: nothing is known
    except OSError:
        return True


def begin_worker(environment: dict[str, str]) -> None:
    """Gives this worker the program's environment, and ends it when that program is gone: no more work would come.
    `environment`: the program's `os.environ` as it is now; a fork server has that of its own start."""
    if dict(os.environ) != environment:  # a forked worker has it, and must not wait for a lock of the parent's threads
        os.environ.clear()
        os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # a fork server has it blocked
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_from_children(descriptor: int) -> int:
    """Has forked processes close the open file as they begin: they would share its lock. `close` it in the end."""
    _open.add(descriptor)
    return descriptor


def close(descriptor: int) -> None:
    """Closes a file that was kept from children."""
    _open.discard(descriptor)
    os.close(descriptor)


def _close_parents() -> None:
    while _open:
        os.close(_open.pop())


if hasattr(os, "register_at_fork"):  # Windows forks nothing
    os.register_at_fork(after_in_child=_close_parents)


class per_process(Generic[Made]):  # noqa: N801 - a decorator
    """What makes one thing for the same arguments and process: a forked one shares no connection.

    A parent's is never dropped in its child, as closing it may wait for a lock that a thread of the parent held.
    """

    LARGEST = 4  # things of a process

    def __init__(self, make: Callable[..., Made]) -> None:
        self.__wrapped__ = make
        self.made: dict[tuple[Any, ...], Made] = {}

    def __call__(self, *arguments: Any) -> Made:
        key = (os.getpid(), *arguments)
        if (found := self.made.get(key)) is None:
            found = self.made[key] = self.__wrapped__(*arguments)
            self.drop(self.LARGEST)
        return found

    def drop(self, left: int = 0) -> None:
        """This process's things, but for the newest: they are made again when they are asked for."""
        own = [key for key in list(self.made) if key[0] == os.getpid()]
        for key in own[: max(0, len(own) - left)]:
            self.made.pop(key, None)


def cores(process: Path = Path("/proc/self")) -> int:
    """The cores, at least 1. A container's limit is a quota of time, which the affinity does not show: 8 of 96, say."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([here, *(int(limit) for limit in quotas(process))]))


def quotas(process: Path) -> Iterator[float]:
    """The limits, in cores, of the process's control group and of those above it, in either version of cgroups."""
    for folder, top in control_groups(process):
        while True:
            yield from limit_in(folder)
            if folder == top:
                break
            folder = folder.parent


def control_groups(process: Path) -> Iterator[tuple[Path, Path]]:
    """(the group's folder, the mounted one at or above it) of each hierarchy that may limit processors."""
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        if not rest.startswith("cgroup"):
            continue
        root, top = fields.split()[3:5]
        kind, _, options = rest.split()[:3]
        for group in groups:
            number, controllers, path = group.split(":", 2)
            if (kind == "cgroup2" and number == "0" and not controllers) or (
                kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(",")
            ):
                # What is mounted may be a part of the hierarchy, and the path then begins with that part or is outside.
                inside = path == root or path.startswith(root.rstrip("/") + "/")
                below = path[len(root.rstrip("/")) :].strip("/") if inside else ""
                yield Path(top, below), Path(top)


def limit_in(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
