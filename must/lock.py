"""Keeps two runs from writing to one place at once. A lock whose owner is dead is taken over.

Locally the operating system holds the lock and drops it when the process ends, however it ends. In a bucket the lock
is an object that its owner writes anew every few seconds; one that has not changed for a minute has no living owner.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from must import storage

BEAT = 10.0  # seconds between signs of life
DEAD_AFTER = 60.0  # seconds without one


class LockLostError(ValueError):
    """Another run holds the place now: this one must not write there any more."""


class CannotLockError(ValueError):
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


SHARDS = Kind("must shard", "--output", ".shard.lock")
CHECKPOINTS = Kind("must train", "--checkpoints", ".train.lock", patience=10.0)


@contextmanager
def locked(place: str, kind: Kind) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder. Gives a function that raises LockLostError if the lock was lost meanwhile.

    Raises:
        ValueError: another run holds it.
        CannotLockError: the file system has no locks.
    """
    path = storage.join(place, kind.name)
    if storage.is_remote(place):
        with locked_object(path, kind) as check:
            yield check
    else:
        with locked_file(storage.local(path), kind):
            yield lambda: None


@contextmanager
def locked_file(path: Path, kind: Kind) -> Iterator[None]:
    with storage.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + kind.patience
    while True:
        with storage.disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # POSIX locks are not inherited by forked workers: when this process dies, the lock is free.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise CannotLockError(f"{path}: this file system cannot lock files: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise ValueError(kind.refusal(path.parent, owner)) from None
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
def locked_object(uri: str, kind: Kind) -> Iterator[Callable[[], None]]:
    owner = Beat(uri, kind)
    owner.take()
    thread = threading.Thread(target=owner.beat, daemon=True)
    thread.start()
    try:
        yield owner.check
    finally:
        owner.ended.set()
        thread.join(timeout=BEAT)  # where the bucket is away: the lock then dies of age


class Beat:
    """The sign of life in the lock object."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self.kind, self.count, self.generation = uri, kind, 0, 0
        self.identity = {"who": whoami(), "host": socket.gethostname(), "pid": str(os.getpid()), "id": uuid.uuid4().hex}
        self.ended, self.writing = threading.Event(), threading.Lock()
        self.lost = False
        self.beaten = time.monotonic()  # when the last good beat began

    def take(self) -> None:
        """Takes the lock, or waits until it is known whether its owner lives."""
        deadline = time.monotonic() + DEAD_AFTER
        seen = storage.generation(self.uri)
        if seen is not None and self.owner().get("host") == socket.gethostname() and not self.alive():
            deadline = 0.0
        elif seen is not None:
            print(f"{self.uri} exists; watching up to {DEAD_AFTER:g} s whether its owner lives", flush=True)
        while seen is not None and time.monotonic() < deadline:
            time.sleep(1)
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
        raise ValueError(self.kind.refusal(place, self.owner().get("who", "unknown")))

    def check(self) -> None:
        """When there was no good beat for too long, only a new one tells whose the lock is.

        Raises:
            LockLostError: not ours any more.
            ValueError, OSError: no beat is possible.
        """
        if not self.lost and time.monotonic() - self.beaten > DEAD_AFTER:
            self.renew()
        if self.lost:
            raise LockLostError(
                f"{self.uri} was taken over by another `{self.kind.command}` while this one was silent; it goes on"
            )

    def owner(self) -> dict[str, str]:
        try:
            content = json.loads(storage.read_bytes(self.uri))
            return content if isinstance(content, dict) else {}
        except (FileNotFoundError, ValueError, RecursionError):
            return {}

    def alive(self) -> bool:
        """Whether the owner, a process of this host, still runs."""
        try:
            pid = int(self.owner()["pid"])
            os.kill(pid, 0)
            return pid != os.getpid()  # a container starts again with the same name and the same numbers
        except PermissionError:
            return True
        except (ProcessLookupError, ValueError, KeyError, OverflowError, TypeError):
            return False

    def write(self, expected: int) -> None:
        with self.writing:
            began = time.monotonic()
            self.count += 1
            content = json.dumps(self.identity | {"beat": self.count}).encode()
            self.generation = storage.remote().write_bytes(self.uri, content, expected)
            self.beaten = began

    def renew(self) -> None:
        try:
            self.write(self.generation)
        except storage.ConflictError:
            self.lost = True

    def beat(self) -> None:
        """Writes the sign until `ended` is set, then takes the lock away."""
        while not self.lost and not self.ended.wait(BEAT):
            # Whatever went wrong, the next beat may be good; `check` sees how old the last good one is.
            with suppress(Exception):
                self.renew()
        if not self.lost:
            with suppress(Exception):  # taken over since the last beat, so not ours to delete; or the bucket is away
                storage.delete(self.uri, self.generation)


def whoami() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
