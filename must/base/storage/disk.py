"""Local files: opening, writing, listing and hashing. A file under its final name is complete.

A file that is being written has a temporary name. Devices and pipes are refused: a device such as /dev/zero has no end,
and opening a pipe waits for a writer."""

import errno
import hashlib
import io
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from must.base.errors import UserError
from must.base.storage.store import ConflictError, Entry, Generation

TEMPORARY = ".tmp-"
"""Prefix of incomplete files. Listings leave them out; the program that resumes after a kill deletes them."""
ABANDONED = 3600  # seconds without a write after which a temporary file counts as abandoned
DEEPEST = 200  # largest depth of folders in a listing


def local(uri: str | Path) -> Path:
    return Path(str(uri).removeprefix("file://"))


def check_regular(status: os.stat_result, path: str | Path) -> None:
    """Raises OSError: neither a file nor a folder. (`open` itself refuses folders.)"""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, no file", str(path))


def check_replaceable(path: Path) -> None:
    """Raises OSError: `path` is a pipe, socket or device (/dev/null, /dev/stdout), which a file would replace."""
    with suppress(FileNotFoundError):
        check_regular(path.stat(), path)
        if path.is_symlink() and str(path.readlink()).startswith("/proc/"):  # /dev/stdout, redirected to a file
            raise OSError(errno.EINVAL, "a pipe, socket or device, no file", str(path))


def open_regular(path: str | Path) -> io.FileIO:
    """Opens a file unbuffered. Raises OSError: there is no such file, or it is no regular file."""
    flag = getattr(os, "O_NONBLOCK", 0)  # or `open` waits for the writer of a pipe
    file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
    try:
        check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def open_local(path: Path, expected: Generation | None = None) -> Iterator[BinaryIO]:
    with disk_errors(path):
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if expected is None:
                temporary.replace(path)
            else:
                compare_and_swap(temporary, path, expected)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def start_writing(file: BinaryIO, start: int, stop: int) -> int:
    """Lets the system write these bytes to the disk now, so that `fsync` does not wait for all of them at the end.
    Returns `stop`."""
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
    return stop


def remove_leftovers(folder: str | Path) -> None:
    """Removes temporary files and folders below a local folder that no program has written to for an hour."""
    for path in [*local(folder).rglob(f"{TEMPORARY}*")] if "://" not in str(folder) else ():
        with suppress(OSError):  # another program may remove it at the same time
            if max(entry.stat().st_mtime for entry in (path, *path.rglob("*"))) < time.time() - ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def compare_and_swap(new: Path, path: Path, expected: Generation) -> None:
    """Renames a complete file to `path` if the generation of the file there is `expected`. Competing programs take
    turns: they lock the file that they replace. Raises ConflictError."""
    conflict = ConflictError(f"{path} was written by another program")
    if expected == 0:
        try:
            link(new, path)
        except FileExistsError:
            raise conflict from None
        return
    import fcntl  # Windows has none, and predicting imports this module

    try:
        file = path.open("rb+")
    except FileNotFoundError:
        raise conflict from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status = os.fstat(file.fileno())
        if not path.exists() or not os.path.samestat(status, path.stat()) or status.st_mtime_ns != expected:
            raise conflict
        if new.stat().st_mtime_ns <= status.st_mtime_ns:  # within one tick of the clock; generations must still grow
            os.utime(new, ns=(status.st_mtime_ns + 1, status.st_mtime_ns + 1))
        new.replace(path)


def link(new: Path, path: Path) -> None:
    """Makes `path` a hard link to `new`. Raises FileExistsError: there is a file of that name."""
    try:
        os.link(new, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # no hard links: for a moment readers see an empty file
        new.replace(path)


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a UserError of one line about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space or write to another place") from error
        if error.errno == errno.EFBIG:
            raise UserError(f"{path}: larger than a file may be here (`ulimit -f`)") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UserError(f"{path}: cannot be written: {(error.strerror or '').lower()}") from error
        raise


def sync_folder(folder: Path) -> None:
    """Writes the folder's own entries to disk (fsync), so that a rename survives a power loss."""
    with suppress(PermissionError):  # a folder without read permission, or Windows, which opens no folder
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support it
                raise
        finally:
            os.close(descriptor)


def walk(
    folder: Path, on_problem: Callable[[str, str], None], prefix: str = "", parents: tuple[tuple[int, int], ...] = ()
) -> Iterator[Entry]:
    """Lists depth first with one open folder a level, so that memory grows with the depth, not with the number of
    files. Nothing deeper than DEEPEST is listed, because open files and Python's stack are limited."""
    if len(parents) > DEEPEST:
        on_problem(prefix.rstrip("/"), f"more than {DEEPEST} folders deep")
        return
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        on_problem(prefix.rstrip("/"), "symbolic link into a folder above it")
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            try:
                if entry.is_dir():
                    yield from walk(Path(entry.path), on_problem, name + "/", (*parents, identity))
                elif entry.is_file():
                    if not entry.name.startswith(TEMPORARY):
                        status = entry.stat()
                        yield Entry(name, status.st_size, str(status.st_mtime_ns))
                elif entry.is_symlink() and not Path(entry.path).exists():
                    on_problem(name, "symbolic link to nowhere")
                else:
                    on_problem(name, "neither a file nor a folder")
            except OSError as error:
                on_problem(name, (error.strerror or str(error)).lower())


class HashingFile:
    """Counts and hashes the written bytes and passes them on to an open file, but no more than `limit` bytes."""

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        self.file, self.limit, self.size, self._digest = file, limit, 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        if self.limit is None or self.size <= self.limit:
            self.file.write(data)
        return len(data)

    def flush(self) -> None:  # torch.save calls it
        self.file.flush()
