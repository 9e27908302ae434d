"""Local files that are being written, under names that say so."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of files that are not complete yet. Listings leave them out, and what goes on after a kill deletes them."""


def unfinished(folder: Path) -> tuple[int, str]:
    """A new file in `folder` to write to: its descriptor and its name."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
    # mkstemp makes files private; a shard on a shared volume is read by other users' pods
    if hasattr(os, "fchmod"):  # not on every Windows, which has no such rights
        os.fchmod(descriptor, 0o666 & ~umask())
    return descriptor, name


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
