"""What several test processes need and one makes: the others wait for it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

SHARED = "MUST_TESTS_SHARED"
"""The environment variable with the folder that all processes of a run of pytest share; deleted when it ends."""


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` in the first process that asks. Tests read it and do not write to it."""
    folder = Path(os.environ[SHARED]) / name
    complete = folder.with_name(f"{name}.complete")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a maker that failed left
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
