"""Locks that prevent two runs from writing to one folder at once. A lock whose owner is dead is taken over.

On a local disk the operating system holds the lock and releases it when the process ends, however it ends. In a bucket
the lock is an object that its owner rewrites every few seconds; the owner of one unchanged for a minute is dead. The
object stays when the lock is released, and says so."""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from must.base import storage
from must.base.errors import MustError, UserError
from must.base.processes import is_running, run_periodically

logger = logging.getLogger(__name__)

RUN_ID = "MUST_RUN_ID"  # environment variable: the id of the pipeline run of this process
LOCK_BEAT_S = 10.0  # seconds between heartbeats
DEAD_AFTER = 60.0  # seconds without a heartbeat after which the owner counts as dead
LOOK_S = 1.0  # seconds between two checks for a heartbeat
MOMENT = 5.0  # seconds in which a folder is created again that others delete while the lock file is created


class HeldError(MustError, ValueError):
    """Another live run holds the lock."""


class LockLostError(MustError, ValueError):
    """Another run has taken over the lock: this one must not write to the folder any more."""


class CannotLockError(UserError):
    """The file system does not support locks."""


@dataclass(frozen=True)
class Kind:
    """One kind of lock: the command that holds it, the flag for the locked folder, and the lock's file name there."""

    command: str
    flag: str
    name: str
    timeout: float = 0.0  # seconds to wait for the owner of a local lock, which may be about to end

    def refusal(self, folder: str, owner: str) -> str:
        return (
            f"{folder} is being written by another `{self.command}` ({owner or 'just started'}); "
            f"wait for it, or stop it, or choose another {self.flag}"
        )


held = set[tuple[int, str]]()  # (process, path): the locks of the system and of a bucket do not tell threads apart
changing = threading.Lock()


@contextmanager
def locked(folder: str, kind: Kind) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder. Yields a function that raises LockLostError if the lock has been lost.
    Raises HeldError: another run, or another thread of this one, holds it; CannotLockError: the file system does not
    support locks."""
    path, is_remote = storage.join(folder, kind.name), storage.is_remote(folder)
    folder = folder if is_remote else str(storage.local(folder))
    key = os.getpid(), path if is_remote else str(Path(path).resolve())
    with changing:
        if key in held:
            raise HeldError(kind.refusal(folder, describe_owner()))
        held.add(key)
    try:
        if is_remote:
            owner = BucketLock(path, kind)
            owner.acquire()
            with run_periodically(
                LOCK_BEAT_S, owner.beat, owner.release
            ):  # if the bucket cannot be reached, the lock expires
                yield owner.check
        else:
            with locked_file(Path(path), kind, folder):
                yield lambda: None
    finally:
        held.discard(key)


@contextmanager
def locked_file(path: Path, kind: Kind, folder: str) -> Iterator[None]:
    import fcntl  # not at the top: Windows does not have it, and predicting imports this module

    deadline = time.monotonic() + kind.timeout
    while True:
        with storage.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # another process has just removed the folder, or `path` is a link to nothing
                if time.monotonic() > deadline + MOMENT:
                    raise
                continue
        try:
            # Forked workers do not inherit POSIX locks: when this process dies, the lock is free.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise CannotLockError(f"{path}: this file system cannot lock files: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise HeldError(kind.refusal(folder, owner)) from None
            time.sleep(0.1)
            continue
        # The previous owner may have deleted the file after `open` and before `lockf`: then the path is another file.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, describe_owner().encode())
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


RELEASED = {"released": "yes"}  # the content of a lock that nobody holds


class BucketLock:
    """A lock in a bucket: an object that holds its owner's heartbeat."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self.kind, self.count = uri, kind, 0
        self.generation: storage.Generation = 0
        self.identity = {"who": describe_owner(), "pid": str(os.getpid()), "id": uuid.uuid4().hex} | identify_machine()
        self.writing = threading.Lock()
        self.lost = False
        self.last_beat = time.monotonic()  # start time of the last successful heartbeat

    def acquire(self) -> None:
        """Takes the lock. If another run has it, first waits for its next heartbeat or for DEAD_AFTER seconds."""
        first = generation = storage.find_generation(self.uri)
        waits, deadline = first is not None and not self.is_free(), time.monotonic() + DEAD_AFTER
        if waits:
            logger.info(f"{self.uri} exists; watching its heartbeat for up to {DEAD_AFTER:g} s")
        while waits and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            generation = storage.find_generation(self.uri)
            free = (
                self.is_free() and storage.find_generation(self.uri) == generation
            )  # else that is of the owner before
            waits = generation is not None and not free
            if waits and generation != first:
                self.refuse()
        self.generation = generation or 0
        self.renew()
        if self.lost:
            self.refuse()

    def refuse(self) -> None:
        folder = self.uri.removesuffix("/" + self.kind.name)
        raise HeldError(self.kind.refusal(folder, self.owner().get("who", "unknown")))

    def check(self) -> None:
        """Checks that this process still holds the lock. If the last heartbeat is too old, a new one must succeed.
        Raises LockLostError: another run holds the lock; ValueError, OSError: the heartbeat could not be written."""
        if not self.lost and time.monotonic() - self.last_beat > DEAD_AFTER:
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

    def is_free(self) -> bool:
        """Whether the lock was released, or its owner was a process of this machine and container that has ended."""
        owner = self.owner()
        if owner == RELEASED:
            return True
        if any(owner.get(name, "") != value for name, value in identify_machine().items()):
            return False
        try:
            pid = int(owner["pid"])
        except (ValueError, KeyError, OverflowError, TypeError):
            return True
        return not is_running(pid) or pid == os.getpid()  # or this process has the number of an owner that has ended

    def renew(self) -> None:
        """Writes a heartbeat, unless another run has taken over the lock."""
        with self.writing:  # the heartbeat thread and `check` both replace the object
            started = time.monotonic()
            self.count += 1
            content = json.dumps(self.identity | {"beat": self.count}).encode()
            try:
                self.generation = storage.find_store(self.uri).write_bytes(self.uri, content, self.generation)
                self.last_beat = started
            except storage.ConflictError:
                self.lost = True

    def beat(self) -> None:
        """Writes a heartbeat, unless the lock is lost."""
        if not self.lost:
            with suppress(Exception):  # the next heartbeat may succeed; `check` compares the time of the last one
                self.renew()

    def release(self) -> None:
        """Marks the lock as free, if this process holds it."""
        if not self.lost:
            with suppress(Exception):  # another run took it over after the last heartbeat, or the bucket is unreachable
                content = json.dumps(RELEASED).encode()
                storage.find_store(self.uri).write_bytes(self.uri, content, self.generation)


def identify_machine() -> dict[str, str]:
    """Identifies the machine and container in which a process id is valid: containers may share a host's name.

    The boot id and the process namespace are "" where the system does not have them."""
    boot, pids = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        pids = str(Path("/proc/self/ns/pid").readlink())
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def describe_owner() -> str:
    """The owner of a lock, for messages: the run of the pipeline, if there is one, and the process."""
    run = f"run {os.environ[RUN_ID]}, " if os.environ.get(RUN_ID) else ""
    return f"{run}process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
