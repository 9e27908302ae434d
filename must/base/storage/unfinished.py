"""Local files that are being written: without a name where that can be, so that nothing stays of a killed one."""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of files that are not complete yet. Listings leave them out."""
NAMELESS = getattr(os, "O_TMPFILE", 0)
"""Opens a file in a folder without a name: whatever ends the program, nothing of it stays. Not on network volumes."""
TRIED: dict[int, bool] = {}  # by file system: whether it takes them


def unfinished(folder: Path) -> tuple[int, str]:
    """A file in `folder` to write to: its descriptor, and its name if it needs one."""
    if takes_nameless(folder):
        return os.open(folder, NAMELESS | os.O_RDWR, 0o666), ""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
    # mkstemp makes files private; a shard on a shared volume is read by other users' pods
    if hasattr(os, "fchmod"):  # not on every Windows, which has no such rights
        os.fchmod(descriptor, 0o666 & ~umask())
    return descriptor, name


def takes_nameless(folder: Path) -> bool:
    """Whether a file can be opened there without a name and get one afterwards. Tried once for each file system."""
    if not NAMELESS:
        return False
    device = folder.stat().st_dev
    if device not in TRIED:
        try:
            descriptor = os.open(folder, NAMELESS | os.O_RDWR, 0o600)
            try:
                Path(give_name(descriptor, folder)).unlink()
            finally:
                os.close(descriptor)
            TRIED[device] = True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                return False  # which says nothing about the next folder
            TRIED[device] = False
    return TRIED[device]


def give_name(descriptor: int, folder: Path) -> str:
    name = str(folder / f"{TEMPORARY}{uuid.uuid4().hex}")
    # Python follows a link only where it is told of a folder, which for a whole path means nothing
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
    return name


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
