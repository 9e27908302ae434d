"""The notes of a run's stages, at WORK_URI/notes/RUN_ID (must/config/work.py).

A note has the stage's state (running, done or failed), its error and last log lines, for the next stages and for
people. The last note of a stage that is killed without an exit code (out of memory, a lost node) has the state running.
Kubeflow tells the exit handler that something failed, but not what, and its state can be wrong."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial

from must.base import storage
from must.base.parameters import make_record
from must.base.program import HELD
from must.config.work import Workspace

NOTHING_NEW = "nothing new"  # the action of the stage champion that ends a run, and of a repeated promotion
OVERTAKEN = ("promote", HELD)  # another run promoted a model meanwhile: a retry cannot succeed
FACTS_FILE = "MUST_FACTS"  # environment variable: the file through which a stage passes facts to its supervisor


@dataclass
class Facts:
    """What a stage says about its work. Each stage sets its own fields."""

    result: str = ""  # one line for people
    checkpoints: str = ""  # train: folder of the checkpoints from which a retry resumes
    action: str = ""  # champion: train, or nothing new; promote: nothing new, or ''
    why: str = ""  # champion: the reason for the action
    trainjob: str = ""  # train: the TrainJob's name
    labels: str = ""  # train: how many images are answered, need not be looked at, and are left
    top1: float | None = None  # evaluate: accuracy, 0..1, if there are labels
    before: float | None = None  # evaluate: of the model that it is compared with
    against: str = "zero-shot"  # evaluate: that model: zero-shot, or the champion, VERSION
    stays: str = ""  # evaluate: the champion, in words, if there is another one than this model
    gain: str = ""  # evaluate: the gain that people's answers measured, where these decided
    report: str = ""  # evaluate: URI of a copy of the report
    outcome: str = ""  # evaluate: of the gate (must/evaluation/gate.py)
    reasons: list[str] = field(default_factory=list)  # evaluate: one line per rule of the gate
    version: str = ""  # promote: the new champion
    place: str = ""  # promote: its folder in the registry
    rows: dict[str, int] = field(default_factory=dict)  # label: numbers of rows, by kind
    pod: str = ""  # why the stage's pod ended, as the cluster reports it

    def save(self) -> None:
        """Passes them to the supervisor, which writes them into the note, also if this process is then killed."""
        if file := os.environ.get(FACTS_FILE):
            storage.write_bytes(file, json.dumps(asdict(self)).encode())


@dataclass
class Failure:
    """What a stage said about its end."""

    kind: str  # the exception's class; '' if it was none
    text: str  # one line: what, where, what to do


@dataclass
class Note:
    stage: str
    state: str = "running"  # then done or failed
    started: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0
    code: int = 0  # the exit code of a failed stage
    error: Failure | None = None  # of the last try; None: it said nothing, such as when it was killed
    facts: Facts = field(default_factory=Facts)
    signalled: float = 0.0  # time of a SIGTERM, in seconds since 1970
    tries: list[int | None] = field(default_factory=list)  # exit codes of earlier tries; None: it ended without one
    lines: list[str] = field(default_factory=list)  # the last lines of the log


def make_part_name(stage: str, part: str) -> str:
    """The name of the note of part I/N of a stage."""
    return f"{stage}-{part.replace('/', '-of-')}"


def parse_failure(text: str | bytes) -> Failure | None:
    """From the line that `keep_error` (must/base/program.py) writes; None for anything else."""
    return storage.parse_object_or_none(text, partial(make_record, Failure))


def write_note(work_uri: str, run_id: str, note: Note) -> None:
    uri = storage.join(Workspace(work_uri).notes(run_id), f"{note.stage}.json")
    storage.write_bytes(uri, json.dumps(asdict(note), indent=1).encode())


parse_note = partial(make_record, Note)


def read_note(work_uri: str, run_id: str, stage: str) -> Note | None:
    """None if there is none, or it cannot be read."""
    with suppress(ValueError, OSError):
        data = storage.read_bytes(storage.join(Workspace(work_uri).notes(run_id), f"{stage}.json"))
        return storage.parse_object_or_none(data, parse_note)
    return None


def read_notes(work_uri: str, run_id: str = "") -> list[Note]:
    """The run's notes, in the order in which the stages started. Files that are no notes are left out."""
    folder = Workspace(work_uri).notes(run_id)
    names = [entry.name for entry in storage.list_existing(folder) if entry.name.endswith(".json")]
    notes = [storage.parse_object_or_none(storage.read_bytes(storage.join(folder, name)), parse_note) for name in names]
    return sorted(filter(None, notes), key=lambda note: note.started)
