"""Runs a stage in its own process, and repeats it after errors that may be temporary: a killed worker, a lost store or
peer, a crash; not after wrong input. Writes the stage's note meanwhile.

The backend's retries are not enough: installations differ, and none distinguishes wrong input from a crash. They are
only for pods that vanish. This process imports no torch; what the stage prints passes through it, so that its last
lines are known even if it is killed."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from must.base.lock import RUN_ID
from must.base.parameters import make_record
from must.base.processes import end_with_parent, make_child_environment, run_periodically
from must.base.program import (
    ERROR_FILE,
    HELD,
    INTERRUPTED,
    PREEMPTED,
    TIME_OVER,
    WRONG_INPUT,
    exiting,
    find_exit_code,
    format_error,
    handling,
)
from must.base.storage import wait_for_credentials
from must.base.text import remove_secrets
from must.pods.notes import (
    FACTS_FILE,
    OVERTAKEN,
    Facts,
    Failure,
    Note,
    make_part_name,
    parse_failure,
    read_note,
    write_note,
)
from must.table import COMPONENTS, import_name

logger = logging.getLogger(__name__)

RETRIES = "MUST_RETRIES"  # environment variable, from cluster.yaml: COUNT,SECONDS,FACTOR; unset: no retries
TIME_LIMIT_ENV = "MUST_TIME_LIMIT"  # environment variable, from cluster.yaml: seconds for all tries in this pod
GRACE = 300.0  # seconds from SIGTERM to SIGKILL at the limit, for a large checkpoint; the pod itself has 900
NEVER_RETRIED = (0, WRONG_INPUT, INTERRUPTED, TIME_OVER)
FIRST = ("inputs", "model")  # stages that begin a run: the others know that its URIs have worked
URI_VALUES = ("registry_uri", "output")  # names of `values` that are URIs, besides work_uri
LONGEST_WAIT = 3600.0  # seconds between two tries
NOTE_S = 10.0  # seconds between two writes of a running stage's note
MAX_LINES = 40  # lines of the log in a note
DRAIN_TIMEOUT = 5.0  # seconds for the last lines: a process that outlives the stage keeps the pipe open


@dataclass(frozen=True)
class Policy:
    count: int  # tries after the first
    backoff: float  # seconds before the first of them
    factor: int  # by which the seconds grow from one try to the next

    def pause(self, number: int) -> float:
        """Seconds before retry `number`, from 1."""
        return min(LONGEST_WAIT, self.backoff * self.factor ** (number - 1))


def run_supervised(stage: str, function: str, run_id: str, work_uri: str, /, **values: Any) -> Any:
    """Calls `function` with the stage's Facts, `work_uri` and `values` in another process; returns its result.
    Raises SystemExit: with the exit code of the last try; 137 if it was killed.

    A pod whose predecessor in this run has given up ends at once with the same code: the backend may retry any pod.
    `stage`: the note's name; `function`: "module:name", imported in the other process alone, as importing takes time.
    Its parameters and its result are JSON values."""
    if stage not in FIRST:
        wait_for_credentials(work_uri, *(str(values.get(name) or "") for name in URI_VALUES))
    count, backoff, factor = (os.environ.get(RETRIES) or "0,0,1").split(",")
    note, earlier = Note(stage), read_note(work_uri, run_id, stage)
    if earlier is not None and earlier.state != "done":
        failed = earlier.state == "failed"
        if run_id and failed and earlier.code in (WRONG_INPUT, TIME_OVER):  # runs without an id share their notes
            why = f": {earlier.error.text}" if earlier.error else ""
            logger.warning(f"must {stage}: gave up before, with exit code {earlier.code}{why}; start a new run")
            raise SystemExit(earlier.code)
        note.tries = [*earlier.tries, earlier.code if failed else None]
    with tempfile.TemporaryDirectory(prefix="must-") as folder:
        job = {"stage": stage, "function": function, "values": {"work_uri": work_uri, **values}}
        (Path(folder) / "job.json").write_text(json.dumps(job))
        policy = Policy(int(count), float(backoff), int(factor))
        if code := Supervisor(note, Path(folder), policy, work_uri, run_id).run():
            raise SystemExit(code)
        return json.loads((Path(folder) / "result.json").read_text())


def run_stage(name: str, values: dict[str, Any]) -> Any:
    """Calls the function of a row of must/table.py with the component's parameters and the paths of its artifacts, in
    another process (`run_supervised`) unless the row says otherwise. With a `part`, the note is that of the part."""
    pod = COMPONENTS[name]
    if not pod.supervised:
        return import_name(pod.function)(**values)
    values = dict(values)
    run_id, work_uri = values.pop("run_id"), values.pop("work_uri")
    note = make_part_name(pod.of or name, values["part"]) if "part" in values else pod.of or name
    return run_supervised(note, pod.function, run_id, work_uri, **values)


class Supervisor:
    """The tries of one stage in this pod, and its note."""

    def __init__(self, note: Note, folder: Path, policy: Policy, work_uri: str, run_id: str) -> None:
        self.note, self.policy, self.work_uri, self.run_id = note, policy, work_uri, run_id
        self.folder, self.facts, self.error = folder, folder / "facts.json", folder / "error.json"
        files = {FACTS_FILE: str(self.facts), ERROR_FILE: str(self.error)}
        self.environment = make_child_environment() | files | {RUN_ID: run_id}
        self.lines = deque[str](maxlen=MAX_LINES)
        self.stopping, self.changed = threading.Event(), threading.Event()  # the latter: write the note at once
        self.signals, self.writing = queue.SimpleQueue[int](), threading.Lock()
        self.limit = float(os.environ.get(TIME_LIMIT_ENV) or 0)
        self.deadline = time.monotonic() + self.limit if self.limit else None
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Runs the tries; returns the exit code of the last one."""
        self.write()
        threading.Thread(target=self.follow_signals, daemon=True).start()
        try:
            with (
                run_periodically(NOTE_S, self.write, at_once=self.changed),
                handling(signal.SIGTERM, self.forward),
                handling(signal.SIGINT, self.forward),
            ):
                self.note.code = self.repeat()
        except BaseException as error:
            self.note.code = find_exit_code(error)
            self.note.error = Failure(type(error).__name__, format_error(error))
            raise
        finally:
            self.signals.put(0)
            self.note.state = "failed" if self.note.code else "done"
            self.write()
        return self.note.code

    def write(self) -> None:
        """Writes the note. That it cannot be written is only a warning: it must not stop the stage. The last one waits
        for one that hangs, which would overwrite it."""
        with self.writing:
            with suppress(OSError, ValueError):
                self.note.facts = make_record(Facts, json.loads(self.facts.read_text()))
            self.note.seconds, self.note.lines = round(time.time() - self.note.started, 1), list(self.lines)
            try:
                write_note(self.work_uri, self.run_id, self.note)
            except (ValueError, OSError) as error:
                logger.warning(f"must: the stage's note could not be written: {format_error(error)}")

    def repeat(self) -> int:
        number = 0
        while True:
            code = self.attempt()
            overtaken = (self.note.stage, code) == OVERTAKEN
            if code in NEVER_RETRIED or overtaken or self.stopping.is_set() or number >= self.policy.count:
                return code
            number += 1
            pause = self.policy.pause(number)
            if self.deadline and time.monotonic() + pause > self.deadline:
                self.warn(
                    f"ended with exit code {code}; its time limit of {self.limit:g} s is too near for another try"
                )
                return TIME_OVER
            self.note.tries.append(code)
            how = "waits for the other run to end" if code == HELD else f"ended with exit code {code}"
            logger.warning(
                f"must {self.note.stage}: try {number} of {self.policy.count + 1} {how}; trying again in {pause:g} s"
            )
            self.changed.set()
            if self.stopping.wait(pause):
                return PREEMPTED

    def attempt(self) -> int:
        command = [sys.executable, "-m", "must.pods.supervise", str(self.folder)]
        self.error.unlink(missing_ok=True)  # of the try before
        # In its own process group: so it gets a signal to this group only once, from `forward`.
        child = subprocess.Popen(
            command, env=self.environment, process_group=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.child = child
        assert child.stdout
        reader = threading.Thread(target=self.pass_on, args=(child.stdout,), daemon=True)
        reader.start()
        if self.stopping.is_set():  # the signal came before the child was started
            child.terminate()
        try:
            code = child.wait(self.deadline and max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = self.stop_at_limit(child)
        reader.join(DRAIN_TIMEOUT)
        self.note.error = None
        with suppress(OSError):
            if failure := parse_failure(self.error.read_text(errors="replace")):
                self.note.error = replace(failure, text=remove_secrets(failure.text))
        if code == -signal.SIGTERM:
            return PREEMPTED
        return 128 - code if code < 0 else code

    def pass_on(self, output: IO[bytes]) -> None:
        """Copies the child's output to this process's, and keeps its last lines."""
        pending = b""
        with output:
            while data := os.read(output.fileno(), 65536):
                with suppress(OSError):
                    os.write(1, data)
                *complete, pending = (pending + data).split(b"\n")
                for line in complete:  # of a progress bar only the last state
                    self.keep(line.rstrip(b"\r").rsplit(b"\r", 1)[-1])
            self.keep(pending)

    def keep(self, line: bytes) -> None:
        self.lines.extend(remove_secrets(line.decode(errors="replace").rstrip()).splitlines())

    def stop_at_limit(self, child: subprocess.Popen[bytes]) -> int:
        """Ends the stage with SIGTERM, so that training saves a checkpoint. Returns 0 if it succeeds now."""
        self.warn(f"reached its time limit of {self.limit:g} s")
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return TIME_OVER if child.returncode else 0

    def warn(self, text: str) -> None:
        """Prints a line about the stage, which is also in its note."""
        line = f"must {self.note.stage}: {text}"
        logger.warning(line)
        self.lines.append(line)

    def forward(self, number: int, frame: object) -> None:
        """The handler of a signal. It interrupts the main thread anywhere, also while that holds an event's lock, so
        another thread does the work."""
        self.signals.put(number)

    def follow_signals(self) -> None:
        """Forwards each signal to the child, until 0 comes; the note is written at once: half a second may be left."""
        while number := self.signals.get():
            self.note.signalled = time.time()
            self.stopping.set()
            if self.child is not None:
                with suppress(ProcessLookupError):
                    self.child.send_signal(number)
            self.changed.set()


def work(folder: Path) -> None:
    """The supervised process: calls the function and writes its result to a file."""
    end_with_parent()
    job, facts = json.loads((folder / "job.json").read_text()), Facts()
    with exiting(job["stage"]):
        try:
            result = import_name(job["function"])(facts, **job["values"])
            (folder / "result.json").write_text(json.dumps(result))  # `exiting` may end this process
        finally:
            facts.save()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
