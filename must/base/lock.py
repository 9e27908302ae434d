"""Keeps two runs from writing to one place at once. A lock whose owner is dead is taken over.

Locally the operating system holds the lock and drops it when the process ends, however it ends. In a bucket the lock
is an object that its owner rewrites every few seconds; one that has not changed for a minute has no living owner.
"""

import errno
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from must.base import storage
from must.base.background import every
from must.base.errors import MustError, UserError

logger = logging.getLogger(__name__)

RUN_ID = "MUST_RUN_ID"  # the environment's name for the run of the pipeline that a process belongs to
LOCK_BEAT_S = 10.0  # seconds between heartbeats
DEAD_AFTER = 60.0  # seconds without one
LOOK_S = 1.0  # seconds between two looks for one
MOMENT = 5.0  # seconds in which a folder that goes while its lock is made is made again


class HeldError(MustError, ValueError):
    """Another run, which lives, holds the place."""


class LockLostError(MustError, ValueError):
    """Another run holds the place now: this one must not write there any more."""


class CannotLockError(UserError):
    """The file system has no locks."""


@dataclass(frozen=True)
class Kind:
    """Who locks what: a stage's command, the flag that names the place, and the lock's file there."""

    command: str
    flag: str
    name: str
    patience: float = 0.0  # seconds to wait for the owner of a local lock, who may be dying

    def refusal(self, place: object, owner: str) -> str:
        return (
            f"{place} is being written by another `{self.command}` ({owner or 'just started'}); "
            f"wait for it, or stop it, or choose another {self.flag}"
        )


@contextmanager
def locked(place: str, kind: Kind) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder. Gives a function that raises LockLostError if the lock was lost meanwhile.
    Raises HeldError: another run holds it; CannotLockError: the file system has no locks."""
    path = storage.join(place, kind.name)
    if storage.is_remote(place):
        owner = Beat(path, kind)
        owner.take()
        with every(LOCK_BEAT_S, owner.beat, owner.release):  # where the bucket is away, the lock dies of age
            yield owner.check
    else:
        with locked_file(storage.local(path), kind, str(storage.local(place))):
            yield lambda: None


@contextmanager
def locked_file(path: Path, kind: Kind, place: str) -> Iterator[None]:
    import fcntl  # not at the top: Windows has none, and predicting imports this module

    deadline = time.monotonic() + kind.patience
    while True:
        with storage.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # another one has just removed the folder
                if time.monotonic() > deadline + MOMENT:
                    raise
                continue
        try:
            # POSIX locks are not inherited by forked workers: when this process dies, the lock is free.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise CannotLockError(f"{path}: this file system cannot lock files: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise HeldError(kind.refusal(place, owner)) from None
            time.sleep(0.1)
            continue
        # The owner before us may have deleted the file between our opening and our locking it.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, whoami().encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Waits until no other process holds `path`. The file stays: removing it would let two processes lock two files."""
    import fcntl

    with storage.disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Beat:
    """The heartbeat in the lock object."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self.kind, self.count = uri, kind, 0
        self.generation: storage.Generation = 0
        self.identity = {"who": whoami(), "pid": str(os.getpid()), "id": uuid.uuid4().hex} | pid_scope()
        self.writing = threading.Lock()
        self.lost = False
        self.beaten = time.monotonic()  # when the last good beat began

    def take(self) -> None:
        """Takes the lock, or waits until it is known whether its owner lives."""
        deadline = time.monotonic() + DEAD_AFTER
        seen = storage.generation(self.uri)
        if seen is not None and self.gone():
            deadline = 0.0
        elif seen is not None:
            logger.info(f"{self.uri} exists; watching its heartbeat for up to {DEAD_AFTER:g} s")
        while seen is not None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            now = storage.generation(self.uri)
            if now is not None and now != seen:
                self.refuse()
            seen = now
        try:
            self.write(seen or 0)
        except storage.ConflictError:
            self.refuse()

    def refuse(self) -> None:
        place = self.uri.removesuffix("/" + self.kind.name)
        raise HeldError(self.kind.refusal(place, self.owner().get("who", "unknown")))

    def check(self) -> None:
        """Checks that the lock is still ours: after too long without a beat, only a new one tells.
        Raises LockLostError: not ours any more; ValueError, OSError: no beat is possible."""
        if not self.lost and time.monotonic() - self.beaten > DEAD_AFTER:
            self.renew()
        if self.lost:
            raise LockLostError(
                f"{self.uri} is now held by another `{self.kind.command}`; wait for it, then run this again"
            )

    def owner(self) -> dict[str, str]:
        try:
            return storage.read_object(self.uri, dict, UserError())
        except (FileNotFoundError, ValueError):
            return {}

    def gone(self) -> bool:
        """Whether the owner was a process that this one would see, and runs no more.

        Of other machines' and containers' processes, and of those of older versions, which do not say where they ran,
        it is never known.
        """
        owner = self.owner()
        if any(owner.get(name, "") != value for name, value in pid_scope().items()):
            return False
        try:
            pid = int(owner["pid"])
            os.kill(pid, 0)
            return pid == os.getpid()  # it has the number of one that has ended
        except PermissionError:
            return False
        except (ProcessLookupError, ValueError, KeyError, OverflowError, TypeError):
            return True

    def write(self, expected: storage.Generation) -> None:
        began = time.monotonic()
        self.count += 1
        content = json.dumps(self.identity | {"beat": self.count}).encode()
        self.generation = storage.remote(self.uri).write_bytes(self.uri, content, expected)
        self.beaten = began

    def renew(self) -> None:
        with self.writing:  # the thread of the beats and `check` replace each other's object
            try:
                self.write(self.generation)
            except storage.ConflictError:
                self.lost = True

    def beat(self) -> None:
        """Writes the sign, unless the lock is lost."""
        if not self.lost:
            with suppress(Exception):  # the next beat may be good; `check` sees how old the last good one is
                self.renew()

    def release(self) -> None:
        """Deletes the lock, if it is ours."""
        if not self.lost:
            with suppress(Exception):  # taken over since the last beat, so not ours to delete; or the bucket is away
                storage.remote(self.uri).delete(self.uri, self.generation)


def pid_scope() -> dict[str, str]:
    """Where a process's number means this process: containers may share a host's name, but not their processes.

    Where the system does not tell of boots and of namespaces of processes, these are "".
    """
    boot, pids = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        pids = str(Path("/proc/self/ns/pid").readlink())
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def whoami() -> str:
    """The owner of a lock for people: the run of the pipeline, if it is one, and the process."""
    run = f"run {os.environ[RUN_ID]}, " if os.environ.get(RUN_ID) else ""
    return f"{run}process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def run_in(line: str) -> str:
    """The run that a refusal names, or ''."""
    found = re.search(r" is being written by another .* \(run ([\w-]+), process ", line)
    return found[1] if found else ""
