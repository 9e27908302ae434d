"""Keeps two runs from writing to one output at once. A lock whose owner is dead is taken over.

Locally the operating system holds the lock and drops it when the process ends, however it ends. In a bucket the lock
is an object that its owner writes anew every few seconds; one that has not changed for a minute has no living owner.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from must import storage

NAME = ".shard.lock"
BEAT = 10.0  # seconds between signs of life
DEAD_AFTER = 60.0  # seconds without one


@contextmanager
def locked(output: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of an output folder. Gives a function that raises ValueError if the lock was lost meanwhile.

    Raises:
        ValueError: another run holds it.
    """
    path = storage.join(output, NAME)
    if storage.is_remote(output):
        with locked_object(path) as check:
            yield check
    else:
        with locked_file(storage.local(path)):
            yield lambda: None


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    with storage.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with storage.disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # POSIX locks are not inherited by forked workers: when this process dies, the lock is free.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"{path.parent} is being written by another `must shard` ({owner or 'just started'}); "
                    "wait for it, or stop it, or choose another --output"
                ) from None
            raise ValueError(f"{path}: this file system cannot lock files: {error.strerror}") from error
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
def locked_object(uri: str) -> Iterator[Callable[[], None]]:
    owner = Beat(uri)
    owner.take()
    thread = threading.Thread(target=owner.beat, daemon=True)
    thread.start()
    try:
        yield owner.check
    finally:
        owner.ended.set()
        thread.join()
        if not owner.lost:
            storage.delete(uri)


class Beat:
    """The sign of life in the lock object."""

    def __init__(self, uri: str) -> None:
        self.uri, self.count, self.generation = uri, 0, 0
        self.ended = threading.Event()
        self.lost = False

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
        raise ValueError(
            f"{self.uri.removesuffix('/' + NAME)} is being written by another `must shard` "
            f"({self.owner().get('who', 'unknown')}); wait for it, or stop it, or choose another --output"
        )

    def check(self) -> None:
        if self.lost:
            raise ValueError(f"{self.uri} was taken over by another `must shard` while this one was silent; it goes on")

    def owner(self) -> dict[str, str]:
        try:
            return json.loads(storage.read_bytes(self.uri))
        except (FileNotFoundError, ValueError):
            return {}

    def alive(self) -> bool:
        """Whether the owner, a process of this host, still runs."""
        try:
            pid = int(self.owner()["pid"])
            os.kill(pid, 0)
            return pid != os.getpid()  # a container starts again with the same name and the same numbers
        except PermissionError:
            return True
        except (ProcessLookupError, ValueError, KeyError):
            return False

    def write(self, expected: int) -> None:
        self.count += 1
        content = {"who": whoami(), "host": socket.gethostname(), "pid": str(os.getpid()), "beat": self.count}
        with tempfile.NamedTemporaryFile(prefix="must-") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            storage.upload(file.name, self.uri, if_generation_match=expected)
        self.generation = storage.generation(self.uri) or 0

    def beat(self) -> None:
        while not self.ended.wait(BEAT):
            try:
                self.write(self.generation)
            except storage.ConflictError:
                self.lost = True
                return
            except ValueError:  # the bucket cannot be reached; the workers will say so
                continue


def whoami() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
