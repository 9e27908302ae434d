"""One note per stage: its state (running, done or failed) and last log lines, for the next stages and for people.

The notes of a run are at WORK_URI/notes/RUN_ID. The last note of a stage that is killed without an exit code (out of
memory, a lost node) has the state running and is at most a minute old. Kubeflow tells a pipeline's exit handler that
something failed, but not what, and its state can be wrong.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

from must.base import storage
from must.base.background import every
from must.base.exits import BUG, find_exit_code, format_error
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.base.records import make_record
from must.base.text import without_secrets
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

NOTE_S = 60.0  # seconds between two writes of a running stage's note
FIRST = 4.0  # seconds before the first write; doubled up to NOTE_S
RESULT_FILE_ENV = "MUST_NOTE"  # environment variable: the file through which a stage passes facts to its supervisor
MAX_LINES = 40  # lines
# Seconds to wait for the last lines: a child that outlives the stage keeps the pipe open for longer.
DRAIN_TIMEOUT = 5.0
NOT_WRITTEN = ("source", "changed")
LARGEST_NUMBER = 3e12  # in a note; as seconds, the functions of `time` accept it


class Tail:
    """A context in which file descriptors 1 and 2 are pipes, whose data is recorded and passed on.

    Replacing sys.stdout would miss the output of torchrun's processes and of C libraries. All lines are recorded when
    the context ends; before that, some may still be in a pipe.
    """

    def __init__(self) -> None:
        self.last_lines: deque[str] = deque(maxlen=MAX_LINES)
        self.lock = threading.Lock()
        self.originals: dict[int, int] = {}  # descriptor -> a duplicate of its original target
        self.readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for descriptor in (1, 2):
            read_end, write_end = os.pipe()
            self.originals[descriptor] = os.dup(descriptor)
            flush()
            os.dup2(write_end, descriptor)
            os.close(write_end)
            reader = threading.Thread(target=self.pass_on, args=(read_end, self.originals[descriptor]), daemon=True)
            reader.start()
            self.readers.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        flush()
        for descriptor, original in self.originals.items():
            os.dup2(original, descriptor)  # closes the write end: the reader gets the remaining data, then the end
        deadline = time.monotonic() + DRAIN_TIMEOUT
        for reader in self.readers:
            reader.join(timeout=max(0.0, deadline - time.monotonic()))
        for reader, original in zip(self.readers, self.originals.values(), strict=True):
            if not reader.is_alive():
                os.close(original)

    def lines(self) -> list[str]:
        flush()
        with self.lock:
            return list(self.last_lines)

    def add(self, text: str) -> None:
        with self.lock:
            self.last_lines.extend(without_secrets(text.rstrip()).splitlines())

    def pass_on(self, source: int, target: int) -> None:
        pending = b""
        while data := os.read(source, 65536):
            with suppress(OSError):
                os.write(target, data)
            *complete, pending = (pending + data).split(b"\n")
            for line in complete:  # of a progress bar only the last state
                self.add(line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace"))
        self.add(pending.decode(errors="replace"))
        os.close(source)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()


@dataclass
class Facts:
    """The results of a stage, for programs. Each stage sets its own fields; empty fields are not written."""

    action: str = ""  # champion: train, or nothing new; promote: nothing new, or ''
    why: str = ""  # champion: the reason for the action
    trainjob: str = ""  # train: the TrainJob's name
    top1: float | None = None  # evaluate: accuracy, 0..1, if there are labels
    before: float | None = None  # accuracy of the zero-shot model (evaluate) or of the champion (gate)
    report: str = ""  # evaluate: URI of a copy of the report
    report_link: str = ""  # evaluate: URL of the report on Kubeflow's own server
    outcome: str = ""  # gate: passed, stopped, ...
    against: str = ""  # gate: the champion, in words
    reasons: list[str] = field(default_factory=list)  # gate: one line per rule
    version: str = ""  # promote: the new champion
    then: list[str] = field(default_factory=list)  # inputs: the notes that must follow a promotion
    pod: str = ""  # why the stage's pod ended, as the cluster reports it

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value or isinstance(value, float)}


@dataclass(frozen=True)
class Try:
    """An earlier attempt, which failed."""

    code: int | None  # None: it ended without an exit code
    seconds: float
    host: str
    line: str  # the last one of its log


@dataclass
class Note:
    stage: str
    state: str = "running"  # then done or failed
    started: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0
    code: int = 0  # the exit code of a failed stage
    result: str = ""  # one line about the results, for people
    facts: Facts = field(default_factory=Facts)  # the results, for programs
    checkpoints: str = ""  # folder of the checkpoints from which a retry resumes
    signalled: float = 0.0  # time of a SIGTERM, in seconds since 1970
    tries: list[Try] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)
    lines: list[str] = field(default_factory=list)  # the last lines of the log
    source: Path | None = None  # the file that the supervised process writes (RESULT_FILE_ENV)
    changed: threading.Event = field(default_factory=threading.Event)  # set it to write the note immediately

    def update(self) -> None:
        """Copies the results that the supervised process has written so far."""
        if self.source is not None:
            with suppress(OSError, ValueError):
                content = json.loads(self.source.read_text())
                self.result, self.checkpoints = content["result"], content["checkpoints"]
                self.facts = make_record(Facts, self.facts.to_dict() | content["facts"])

    def failed_try(self, code: int | None, seconds: float, line: str) -> None:
        self.tries.append(Try(code, round(seconds, 1), self.host, line[:300]))


@contextmanager
def stage_note(
    work_uri: str, stage: str, checkpoints: str = "", run_id: str = "", facts: Facts | None = None
) -> Iterator[Note]:  # fmt: skip
    """Writes the note of the stage that runs in the block. Exceptions of the block pass through.

    A note that cannot be written is only a warning: it must not stop the stage. In a supervised process the supervisor
    writes the note; the results go to the file RESULT_FILE_ENV for it.
    """
    note = Note(stage, checkpoints=checkpoints, facts=facts or Facts())
    if RESULT_FILE_ENV in os.environ:
        try:
            write_results(Path(os.environ[RESULT_FILE_ENV]), note)
            yield note
        finally:
            write_results(Path(os.environ[RESULT_FILE_ENV]), note)
        return
    uri = storage.join(WorkUri(work_uri).notes(run_id or os.environ.get(RUN_ID, "")), f"{stage}.json")
    note.tries = earlier_tries(uri)
    tail = Tail()
    try:
        write_note(uri, note, tail)
        with tail, every(NOTE_S, partial(write_note, uri, note, tail), first=FIRST, at_once=note.changed):
            yield note
    except BaseException as error:
        note.code = find_exit_code(error)
        note.state = "failed" if note.code else "done"
        if not isinstance(error, SystemExit):
            tail.add(traceback.format_exc() if note.code == BUG else f"must {stage}: {format_error(error)}")
        raise
    else:
        note.state = "done"
    finally:
        write_note(uri, note, tail)  # the tail is closed now, so it has everything that the stage printed


def read_notes(work_uri: str, run_id: str = "") -> list[Note]:
    """The run's notes, in the order in which the stages started."""
    folder = WorkUri(work_uri).notes(run_id)
    names = [entry.name for entry in storage.list_existing(folder) if entry.name.endswith(".json")]
    notes = [decode_note(storage.read_bytes(storage.join(folder, name))) for name in names]
    return sorted((note for note in notes if note is not None), key=lambda note: note.started)


def decode_note(data: bytes) -> Note | None:
    """The note in a file; None if the file is no note."""
    return storage.object_or_none(data, parse_note)


def parse_note(content: dict[str, Any]) -> Note:
    facts = {name: value for name, value in (content.get("facts") or {}).items() if value is not None}
    note = make_record(Note, content | {"facts": facts})
    numbers = [note.started, note.seconds, note.signalled, note.code, note.facts.top1 or 0, note.facts.before or 0]
    numbers += [number for attempt in note.tries for number in (attempt.seconds, attempt.code or 0)]
    require(all(abs(number) < LARGEST_NUMBER for number in numbers), "a number of another kind")
    return note


def earlier_tries(uri: str) -> list[Try]:
    """The failed attempts of this stage in this run: its pod vanished, or it failed, and it was started again."""
    try:
        note = decode_note(storage.read_bytes(uri))
    except (OSError, ValueError):
        return []
    if note is None or note.state == "done":
        return []
    note.failed_try(note.code if note.state == "failed" else None, note.seconds, note.lines[-1] if note.lines else "")
    return note.tries


def write_results(file: Path, note: Note) -> None:
    content = {"result": note.result, "checkpoints": note.checkpoints, "facts": note.facts.to_dict()}
    storage.write_bytes(file, json.dumps(content).encode())


def settle(work_uri: str, run_id: str, why: Mapping[str, str], by_themselves: Collection[str]) -> None:
    """After the run: adds the cluster's reason for the end of the pod to each note that still has the state running.

    Args:
        why: the reason, by stage.
        by_themselves: stages whose pod ended with its own exit code but could not write its last note.
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
        storage.write_bytes(uri, json.dumps(serialize_note(note), indent=1).encode())


def serialize_note(note: Note) -> dict[str, Any]:
    content = {f.name: getattr(note, f.name) for f in fields(note) if f.name not in NOT_WRITTEN}
    return content | {"facts": note.facts.to_dict(), "tries": [asdict(attempt) for attempt in note.tries]}


def write_note(uri: str, note: Note, tail: Tail) -> None:
    note.update()
    content = serialize_note(note) | {"seconds": round(time.time() - note.started, 1), "lines": tail.lines()}
    try:
        storage.write_bytes(uri, json.dumps(content, indent=1).encode())
    except (ValueError, OSError) as error:
        logger.warning(f"must: the stage's note could not be written: {format_error(error)}")
