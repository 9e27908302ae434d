"""Local files opened only to be read, and only where they are files: a device such as /dev/zero has no end, and a pipe
waits for a writer."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def without_waiting(path: str, flags: int) -> int:
    """Opens as `open` does, but for a pipe it does not wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_regular(status: os.stat_result, path: str | Path) -> None:
    """Raises OSError: neither a file nor a folder, which `open` refuses itself."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, no file", str(path))


def open_regular(path: str | Path) -> io.FileIO:
    """The file, unbuffered. Raises OSError: there is none, or something else."""
    file = open(path, "rb", buffering=0, opener=without_waiting)  # noqa: SIM115, its caller closes it
    try:
        check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file
