"""One note per stage: its state (running, done or failed) and last log lines, for the next stages and for people.

The notes of a run are at WORK_URI/notes/RUN_ID. The last note of a stage that is killed without an exit code (out of
memory, a lost node) has the state running and is at most a minute old. Kubeflow tells a pipeline's exit handler that
something failed, but not what, and its state can be wrong.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from must.base import storage
from must.base.parameters import require
from must.base.records import make_record
from must.runtime.places import WorkUri

FACTS_FILE = "MUST_FACTS"  # environment variable: the file through which a stage passes facts to its supervisor
LARGEST_NUMBER = 3e12  # in a note; as seconds, the functions of `time` accept it


@dataclass
class Facts:
    """What a stage says about its work. Each stage sets its own fields."""

    result: str = ""  # one line for people
    checkpoints: str = ""  # train: folder of the checkpoints from which a retry resumes
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

    def save(self) -> None:
        """Passes them to the supervisor, which writes them into the note, also if this process is then killed."""
        if file := os.environ.get(FACTS_FILE):
            storage.write_bytes(file, json.dumps(asdict(self)).encode())


class Try(NamedTuple):
    """An earlier attempt, which failed."""

    code: int | None  # None: it ended without an exit code
    seconds: float


@dataclass
class Note:
    stage: str
    state: str = "running"  # then done or failed
    started: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0
    code: int = 0  # the exit code of a failed stage
    facts: Facts = field(default_factory=Facts)
    signalled: float = 0.0  # time of a SIGTERM, in seconds since 1970
    tries: list[Try] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)
    lines: list[str] = field(default_factory=list)  # the last lines of the log


def part_name(stage: str, part: str) -> str:
    """The name of the note of part I/N of a stage."""
    return f"{stage}-{part.replace('/', '-of-')}"


def write_note(work_uri: str, run_id: str, note: Note) -> None:
    uri = storage.join(WorkUri(work_uri).notes(run_id), f"{note.stage}.json")
    storage.write_bytes(uri, json.dumps(asdict(note), indent=1).encode())


def read_note(work_uri: str, run_id: str, stage: str) -> Note | None:
    """None if there is none, or it cannot be read."""
    with suppress(ValueError, OSError):
        data = storage.read_bytes(storage.join(WorkUri(work_uri).notes(run_id), f"{stage}.json"))
        return storage.object_or_none(data, parse_note)
    return None


def read_notes(work_uri: str, run_id: str = "") -> list[Note]:
    """The run's notes, in the order in which the stages started. Files that are no notes are left out."""
    folder = WorkUri(work_uri).notes(run_id)
    names = [entry.name for entry in storage.list_existing(folder) if entry.name.endswith(".json")]
    notes = [storage.object_or_none(storage.read_bytes(storage.join(folder, name)), parse_note) for name in names]
    return sorted((note for note in notes if note is not None), key=lambda note: note.started)


def parse_note(content: dict[str, Any]) -> Note:
    note = make_record(Note, content)
    numbers = [note.started, note.seconds, note.signalled, note.code, note.facts.top1 or 0, note.facts.before or 0]
    numbers += [number or 0 for attempt in note.tries for number in attempt]
    require(all(abs(number) < LARGEST_NUMBER for number in numbers), "a number of another kind")
    return note
