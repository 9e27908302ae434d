"""A note a stage: running, done or failed, with its last log lines, where the next stages and people can read it.

The notes of a run are at WORK_URI/notes/RUN_ID. A stage killed without an exit code (out of memory, a lost node)
leaves the note that it runs, at most a minute old. Kubeflow tells a pipeline's exit handler that something failed, but
not what, and not always truly.
"""

import json
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.background import every
from must.base.exits import BUG, code_of, line_of
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.base.records import record_of
from must.runtime.places import WorkUri
from must.runtime.tail import Tail

logger = logging.getLogger(__name__)

NOTE_S = 60.0  # seconds between writings of a running stage's note
FIRST = 4.0  # seconds to the first of them, doubled until they are HEARTBEAT_S
RESULT_FILE_ENV = (
    "MUST_NOTE"  # the file by which a stage tells the process that supervises it what to put into the note
)
NOT_WRITTEN = ("source", "changed")


@dataclass
class Facts:
    """What came out of a stage, for programs. Each stage sets its own; what is not set is not written."""

    action: str = ""  # champion: train, or nothing new
    why: str = ""  # champion: why that
    index_sha256: str = ""  # of the index that a part of sharding made
    trainjob: str = ""  # train: the TrainJob's name
    top1: float | None = None  # evaluate: accuracy, 0..1, where there are labels
    before: float | None = None  # evaluate, gate: that of zero-shot, of the champion
    report: str = ""  # evaluate: a copy of the report
    report_link: str = ""  # where Kubeflow's own server hands it out
    outcome: str = ""  # gate: passed, stopped, ...
    against: str = ""  # gate: the champion, in words
    reasons: list[str] = field(default_factory=list)  # gate: a line a rule
    place: str = ""  # review: where answers go
    page: str = ""  # review: the page for people
    page_link: str = ""
    pictures: int = 0  # review: on the page
    text: str = ""  # review: what the answers so far say
    version: str = ""  # promote: the champion's
    pod: str = ""  # why the stage's pod ended, in the cluster's words

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Facts":
        """Raises ValueError: a value of another kind. What this version does not know is left out."""
        found = record_of(cls, {name: value for name, value in content.items() if value is not None})
        require(all(map(is_moderate, (found.top1 or 0, found.before or 0, found.pictures))), "a value of another kind")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value or isinstance(value, float)}


@dataclass
class Note:
    stage: str
    state: str = "running"  # then done or failed
    started: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0
    code: int = 0  # the exit code of a failed stage
    result: str = ""  # one line about what came out, for people
    facts: Facts = field(default_factory=Facts)  # the same for programs
    checkpoints: str = ""  # where a retry goes on from
    signalled: float = 0.0  # when it was asked to stop (SIGTERM), in seconds since 1970
    tries: list[dict[str, Any]] = field(default_factory=list)  # those that failed before: code, seconds, host, line
    host: str = field(default_factory=socket.gethostname)
    lines: list[str] = field(default_factory=list)  # the last of the log
    source: Path | None = None  # what the supervised process tells
    changed: threading.Event = field(default_factory=threading.Event)  # set it, and the note is written at once

    def listen(self) -> None:
        """Takes over what the supervised process has told so far."""
        if self.source is not None:
            with suppress(OSError, ValueError):
                told = json.loads(self.source.read_text())
                self.result, self.checkpoints = told["result"], told["checkpoints"]
                self.facts = Facts.of(self.facts.to_dict() | told["facts"])

    def failed_try(self, code: int | None, seconds: float, line: str) -> None:
        """`code` is None where the try ended with no exit code."""
        self.tries.append({"code": code, "seconds": round(seconds, 1), "host": self.host, "line": line[:300]})


@contextmanager
def stage_note(
    work_uri: str, stage: str, checkpoints: str = "", run_id: str = "", facts: Facts | None = None
) -> Iterator[Note]:  # fmt: skip
    """Keeps the note of the stage that runs inside the block. What it raises passes through.

    A note that cannot be written is a warning: it must not be what stops the stage. In a process that is supervised,
    the supervisor keeps the note and is told what is in this one.
    """
    note = Note(stage, checkpoints=checkpoints, facts=facts or Facts())
    if RESULT_FILE_ENV in os.environ:
        try:
            tell(Path(os.environ[RESULT_FILE_ENV]), note)
            yield note
        finally:
            tell(Path(os.environ[RESULT_FILE_ENV]), note)
        return
    uri = storage.join(WorkUri(work_uri).notes(run_id or os.environ.get(RUN_ID, "")), f"{stage}.json")
    note.tries = earlier_tries(uri)
    tail = Tail()
    try:
        write_note(uri, note, tail)
        with tail, every(NOTE_S, partial(write_note, uri, note, tail), first=FIRST, at_once=note.changed):
            yield note
    except BaseException as error:
        note.code = code_of(error)
        note.state = "failed" if note.code else "done"
        if not isinstance(error, SystemExit):
            tail.add(traceback.format_exc() if note.code == BUG else f"must {stage}: {line_of(error)}")
        raise
    else:
        note.state = "done"
    finally:
        write_note(uri, note, tail)  # the tail is closed by now: nothing the stage printed is missing


def read_notes(work_uri: str, run_id: str = "") -> list[Note]:
    """The run's notes, in the order in which the stages started."""
    folder = WorkUri(work_uri).notes(run_id)
    try:
        names = [entry.name for entry in storage.list_files(folder) if entry.name.endswith(".json")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    notes = [note_of(storage.read_bytes(storage.join(folder, name))) for name in names]
    return sorted((note for note in notes if note is not None), key=lambda note: note.started)


def note_of(data: bytes) -> Note | None:
    """The note in a file; None for any other file, which may be there too."""
    return storage.object_or_none(data, sound)


def sound(content: dict[str, Any]) -> Note:
    known = {f.name for f in fields(Note)} - {*NOT_WRITTEN, "facts"}
    note = Note(**{name: value for name, value in content.items() if name in known})
    note.facts = Facts.of(content.get("facts") or {})
    require(is_sound(note), "a value of another kind")
    return note


def is_sound(note: Note) -> bool:
    """Whether each value is of its kind. Raises TypeError, KeyError or AttributeError where that shows by itself."""
    texts = [note.stage, note.state, note.result, note.checkpoints, note.host, *note.lines]
    numbers = [note.started, note.seconds, note.signalled, note.code]
    for one in note.tries:
        texts += [one["host"], one["line"]]
        numbers += [one["seconds"], one["code"] or 0]
    whole = all(map(is_moderate, numbers)) and all(isinstance(text, str) for text in texts)
    return whole and isinstance(note.lines, list)


def is_moderate(number: Any) -> bool:
    """Whether it is a number, and as seconds none beyond the years that the clock's functions take."""
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 3e12


def earlier_tries(uri: str) -> list[dict[str, Any]]:
    """What became of this stage in this run before: its pod vanished, or it failed, and it was started again."""
    try:
        note = note_of(storage.read_bytes(uri))
    except (OSError, ValueError):
        return []
    if note is None or note.state == "done":
        return []
    note.failed_try(note.code if note.state == "failed" else None, note.seconds, note.lines[-1] if note.lines else "")
    return note.tries


def tell(file: Path, note: Note) -> None:
    content = {"result": note.result, "checkpoints": note.checkpoints, "facts": note.facts.to_dict()}
    storage.write_bytes(file, json.dumps(content).encode())


def settle(work_uri: str, run_id: str, why: Mapping[str, str], by_themselves: Collection[str]) -> None:
    """After the run: puts into the notes that say that their stage runs what the cluster says of its pod.

    Args:
        why: by stage, in the cluster's words.
        by_themselves: stages of which the pod ended with a code of its own, and could not write that down.
    """
    for note in read_notes(work_uri, run_id):
        if note.state != "running" or note.stage not in why:
            continue
        note.facts.pod = why[note.stage]
        if note.stage in by_themselves and not note.signalled:
            note.state, note.code = "failed", BUG
            note.lines.append(
                f"must {note.stage}: its pod ended by itself ({why[note.stage]}) and could not write its last note; "
                "the pod's log says why"
            )
        uri = storage.join(WorkUri(work_uri).notes(run_id), f"{note.stage}.json")
        storage.write_bytes(uri, json.dumps(content_of(note), indent=1).encode())


def content_of(note: Note) -> dict[str, Any]:
    content = {f.name: getattr(note, f.name) for f in fields(note) if f.name not in NOT_WRITTEN}
    return content | {"facts": note.facts.to_dict()}


def write_note(uri: str, note: Note, tail: Tail) -> None:
    note.listen()
    content = content_of(note) | {"seconds": round(time.time() - note.started, 1), "lines": tail.lines()}
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (ValueError, OSError) as error:
        logger.warning(f"must: the stage's note could not be written: {line_of(error)}")
