"""A folder on a node's disk for the remote shards in use: limited in size, shared, and consistent after a kill.

A shard's file is named by its sha256, so it is never stale, whichever run or revision has downloaded it. It is
downloaded under another name, and renamed when it is complete and has the sha256 in the index. All processes of the
node use the folder at the same time, synchronized by the operating system's file locks (`flock`): a reader of a shard
has a shared lock, a download or an eviction an exclusive one. The locks of a killed process are released."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.lock import in_turn
from must.base.processes import close, keep_from_children
from must.data.format import Shard, parse_offsets, read_file

GB = 10**9
SPARE = 200_000_000  # bytes of the disk that are never used
DOWNLOAD_TRIES = 2  # downloads of a shard whose bytes are wrong


class ShardCache:
    """At most `limit` bytes of shards below `folder`; evicts the least recently opened one not in use (LRU)."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder).expanduser(), limit
        with self.exclusive():  # fails if the folder cannot be written
            storage.remove_leftovers(self.folder)

    def check(self, shards: Sequence[Shard], window: int) -> None:
        """Raises ValueError unless the `window` largest of the shards fit, into the limit and onto the disk."""
        need = sum(sorted((shard.bytes for shard in shards), reverse=True)[:window])
        with self.exclusive():
            room = self.allowed(self.files())
        if need > room:
            raise UserError(
                f"--cache {self.folder}: the {min(window, len(shards))} shards that are shuffled together take up to "
                f"{need / GB:.3g} GB, and there is room for {max(room, 0) / GB:.3g} GB (--cache-gb "
                f"{self.limit / GB:.3g}, and what is free on the disk); allow more, or lower --shuffle-window"
            )

    def open(self, uri: str, shard: Shard, wait: bool = True) -> int | None:
        """A file descriptor of the shard, downloaded if necessary. The shard stays in the cache until its `release`.
        None if there is no room for it; without `wait`, also if another process is downloading it.
        Raises ValueError: the object is missing, or its bytes are not those of the index; TransientError: the folder
        was deleted meanwhile."""
        path = self.folder / f"{shard.sha256}.tar"
        try:
            while True:
                descriptor = self.pin(path, shard.bytes)
                if descriptor is not None or not self.download(uri, shard, path, wait):
                    return descriptor
        except FileNotFoundError as error:
            raise storage.TransientError(
                f"--cache {self.folder}: was deleted while it was in use; run the same command again to go on"
            ) from error

    def offsets(self, uri: str, shard: Shard) -> np.ndarray:
        """As `load_offsets`, with the file in the cache."""
        path = self.folder / f"{shard.offsets_sha256}.npy"
        with suppress(OSError, ValueError):
            data = read_file(str(self.folder), path.name, shard.offsets_sha256)
            os.utime(path)
            return parse_offsets(data, str(path), shard)
        data = read_file(uri, shard.offsets_name, shard.offsets_sha256)
        if self.make_room(len(data)):
            with suppress(ValueError):  # the disk is full: it will be downloaded again
                storage.write_bytes(path, data)
        return parse_offsets(data, storage.join(uri, shard.offsets_name), shard)

    def pin(self, path: Path, size: int) -> int | None:
        """The file, open and locked against eviction; None if there is no file of that size."""
        try:
            descriptor = keep_from_children(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size == size:
            os.utime(descriptor)  # the time by which the least recently used file is found
            return descriptor
        self.release(descriptor)
        if status.st_nlink:  # it was truncated
            self.evict(path)
        return None

    def release(self, descriptor: int) -> None:
        """Releases a shard that `open` returned, so that it may be evicted."""
        close(descriptor)

    def download(self, uri: str, shard: Shard, path: Path, wait: bool) -> bool:
        """Whether to look for the shard again: it was downloaded, by this or another process."""
        part = path.with_suffix(".part")
        with storage.disk_errors(part):
            descriptor = keep_from_children(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait:  # until the download is done; the other process may then have a shared lock, too
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                return wait
            try:
                if os.fstat(descriptor).st_nlink == 0 or path.exists():  # another process has done it
                    return True
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    complete = self.fill(uri, shard, file)
                if complete:
                    with self.exclusive():  # a file renamed while `files` lists the folder could be missed
                        part.replace(path)
                return complete
            finally:
                with suppress(FileNotFoundError):
                    if part.stat().st_ino == os.fstat(descriptor).st_ino:  # it is still the one that is locked
                        part.unlink()
        finally:
            self.release(descriptor)

    def fill(self, uri: str, shard: Shard, file: BinaryIO) -> bool:
        """Downloads into the file, which is locked exclusively. Returns False if there is no room."""
        source = storage.join(uri, shard.name)
        for _ in range(DOWNLOAD_TRIES):
            if not self.make_room(shard.bytes, file):
                return False
            target = storage.HashingFile(file, limit=shard.bytes)
            try:
                with storage.disk_errors(self.folder):
                    storage.copy(source, target)
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError:
                raise UserError(f"{source}: is missing; run `must index verify {uri}` for details") from None
            if (target.size, target.sha256) == (shard.bytes, shard.sha256):
                return True
            file.seek(0)
        raise UserError(f"{source}: has changed (sha256); run `must index verify {uri}` for details")

    def make_room(self, size: int, reserve: BinaryIO | None = None) -> bool:
        """Evicts until `size` more bytes fit; gives the file `reserve` that size, so that other processes count it."""
        with self.exclusive():
            if reserve:
                reserve.truncate(0)
            files = sorted(self.files(), key=lambda file: file.used)
            held = sum(file.size for file in files)
            allowed = self.allowed(files)
            for file in files:
                if held + size <= allowed:
                    break
                if self.evict(file.path):
                    held -= file.size
            if held + size > allowed:
                return False
            if reserve:
                reserve.truncate(size)
            return True

    def allowed(self, files: Iterable[Cached]) -> int:
        """Bytes that these files may have: what the disk has for them, up to the limit."""
        on_disk = sum(file.on_disk for file in files)
        return min(self.limit, on_disk + shutil.disk_usage(self.folder).free - SPARE)

    def evict(self, path: Path) -> bool:
        """Deletes a file unless a process has locked it. The unfinished download of a killed process has no lock."""
        try:  # opened for writing, which an exclusive lock on NFS requires
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it was deleted, or is another user's
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return True
        except OSError:  # locked, or in a folder of another user
            return False
        finally:
            os.close(descriptor)

    def files(self) -> Iterator[Cached]:
        """Of one moment only within `exclusive`."""
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part", ".npy"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    yield Cached(path, status.st_size, status.st_blocks * 512, status.st_mtime_ns)

    def exclusive(self) -> AbstractContextManager[None]:
        """For one process at a time: counting and evicting."""
        return in_turn(self.folder / "lock")


class Cached(NamedTuple):
    path: Path
    size: int
    on_disk: int  # bytes; less than `size` while it is downloaded
    used: int  # ns
