"""The file that each worker is reading, written down, so that a killed worker's last file can be named."""

import os
from pathlib import Path
from typing import Self

PREFIX = "at-"
LONGEST = 1000  # bytes of a name


class Breadcrumb:
    """A context manager: `at` says which of a chunk's files comes next. What is written stays when the process is
    killed.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{PREFIX}{number}"

    def __enter__(self) -> Self:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return self

    def at(self, place: int, name: str) -> None:
        # One call of the system, of one length: it costs a file of a hundred kilobytes nothing.
        text = b"%d\0" % place + name.encode("utf-8", "surrogateescape")
        os.pwrite(self.file, text[:LONGEST].ljust(LONGEST, b"\0"), 0)

    def __exit__(self, *error: object) -> None:
        os.close(self.file)
        self.path.unlink(missing_ok=True)


def files_in_progress(folder: Path) -> list[str]:
    """The files that workers were reading when they were killed."""
    texts = [path.read_bytes().rstrip(b"\0").partition(b"\0")[2] for path in folder.glob(f"{PREFIX}*")]
    return sorted(text.decode("utf-8", "surrogateescape") for text in texts if text)


def place_in_progress(folder: Path, number: int) -> int | None:
    """Which of its files the worker at chunk `number` was at when it died; None if it was at none."""
    try:
        return int((folder / f"{PREFIX}{number}").read_bytes().partition(b"\0")[0])
    except (FileNotFoundError, ValueError):
        return None


def remove_all(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)
