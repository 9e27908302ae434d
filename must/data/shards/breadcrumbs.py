"""The file that each worker is reading, written down, so that a killed worker's last file can be named."""

import os
from pathlib import Path
from typing import Self

PREFIX = "at-"
LONGEST = 1000  # bytes of a name


class Breadcrumb:
    """A context manager: `at` says which file comes next. What is written stays when the process is killed."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{PREFIX}{number}"

    def __enter__(self) -> Self:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return self

    def at(self, name: str) -> None:
        # One call of the system, of one length: it costs a file of a hundred kilobytes nothing.
        os.pwrite(self.file, name.encode("utf-8", "surrogateescape")[:LONGEST].ljust(LONGEST, b"\0"), 0)

    def __exit__(self, *error: object) -> None:
        os.close(self.file)
        self.path.unlink(missing_ok=True)


def files_in_progress(folder: Path) -> list[str]:
    """The files that workers were reading when they were killed."""
    names = (path.read_bytes().rstrip(b"\0").decode("utf-8", "surrogateescape") for path in folder.glob(f"{PREFIX}*"))
    return sorted(name for name in names if name)


def remove_all(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)
