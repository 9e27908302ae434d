"""A note a stage: running, done or failed, with its last log lines, where the next stages and people can read it.

The notes lie at WORK_URI/notes. A stage that is killed without a word (out of memory, a lost node) leaves the note that
it runs, at most a minute old. Kubeflow tells a pipeline's exit handler that something failed, but not what.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from must import storage
from must.run.tail import Tail

BEAT = 60.0  # seconds between writings of a running stage's note
FOLDER = "notes"


@dataclass
class Note:
    stage: str
    state: str = "running"  # then done or failed
    started: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0
    code: int = 0  # the exit code of a failed stage
    result: str = ""  # one line about what came out, for people
    checkpoints: str = ""  # where a retry goes on from
    host: str = field(default_factory=socket.gethostname)
    lines: list[str] = field(default_factory=list)  # the last of the log


@contextmanager
def noted(work_uri: str, stage: str, checkpoints: str = "") -> Iterator[Note]:
    """Keeps the note of the stage that runs inside the block. What it raises passes through.

    A note that cannot be written is a warning: it must not be what stops the stage.
    """
    note, uri = Note(stage, checkpoints=checkpoints), storage.join(work_uri, FOLDER, f"{stage}.json")
    tail = Tail()
    try:
        with tail, kept_fresh(uri, note, tail):
            yield note
    except BaseException as error:
        note.state, note.code = ("done", 0) if is_success(error) else ("failed", code_of(error))
        if not isinstance(error, SystemExit):
            tail.add(traceback.format_exc())
        raise
    else:
        note.state = "done"
    finally:
        write(uri, note, tail)  # the tail is closed by now: nothing the stage printed is missing


def read_notes(work_uri: str) -> list[Note]:
    """The notes there are, in the order in which the stages started."""
    try:
        names = [entry.name for entry in storage.list_files(storage.join(work_uri, FOLDER))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    notes = [Note(**json.loads(storage.read_bytes(storage.join(work_uri, FOLDER, name)))) for name in names]
    return sorted(notes, key=lambda note: note.started)


def clear_notes(work_uri: str) -> None:
    """So that the next run's summary cannot take them for its own."""
    storage.delete_folder(storage.join(work_uri, FOLDER))


@contextmanager
def kept_fresh(uri: str, note: Note, tail: Tail) -> Iterator[None]:
    """Writes the running stage's note now and then every BEAT seconds."""

    def keep_fresh() -> None:
        while not over.wait(BEAT):
            write(uri, note, tail)

    write(uri, note, tail)
    over = threading.Event()
    beat = threading.Thread(target=keep_fresh, daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join(timeout=BEAT)


def write(uri: str, note: Note, tail: Tail) -> None:
    content: dict[str, Any] = asdict(note) | {"seconds": round(time.time() - note.started, 1), "lines": tail.lines()}
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (ValueError, OSError) as error:
        print(f"must: the stage's note could not be written: {error}", file=sys.stderr)


def is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and not error.code


def code_of(error: BaseException) -> int:
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
