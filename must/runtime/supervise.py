"""Runs a stage in its own process, and repeats it after errors that may be temporary: a killed worker, a lost store or
peer, a crash; not after wrong input.

The backend's retries are not enough: installations differ, and none distinguishes wrong input from a crash. They are
only for pods that vanish. This process imports no torch; the stage prints through inherited file descriptors, so that
its last lines are known even if it is killed.
"""

import dataclasses
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from must.base import storage
from must.base.exits import HELD, INTERRUPTED, PREEMPTED, TIME_OVER, WRONG_INPUT, exiting, handling
from must.base.lock import RUN_ID
from must.base.parameters import convert, require
from must.base.processes import child_environment, end_with_parent
from must.base.storage import wait_for_credentials
from must.runtime.notes import RESULT_FILE_ENV, Note, decode_note, stage_note
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RETRIES = "MUST_RETRIES"  # environment variable, from cluster.yaml: COUNT,SECONDS,FACTOR; unset: no retries
TIME_LIMIT_ENV = "MUST_TIME_LIMIT"  # environment variable, from cluster.yaml: seconds for all tries in this pod
GRACE = 300.0  # seconds from SIGTERM to SIGKILL at the limit, for a large checkpoint; the pod itself has 900
NEVER_RETRIED = (0, WRONG_INPUT, INTERRUPTED, TIME_OVER)
INPUTS = "inputs"  # the first stage, which has tested the run's URIs
URI_VALUES = ("registry_uri", "tensorboard_uri", "output")  # names of `values` that are URIs, besides work_uri
OVERTAKEN = ("promote", HELD)  # another run promoted a model meanwhile: a retry cannot succeed
LONGEST_WAIT = 3600.0  # seconds between two tries


@dataclass(frozen=True)
class Policy:
    count: int = 0  # tries after the first
    backoff: float = 0.0  # seconds before the first of them
    factor: int = 2  # by which the seconds grow from one try to the next

    def pause(self, number: int) -> float:
        """Seconds before retry `number`, from 1."""
        return min(LONGEST_WAIT, self.backoff * self.factor ** (number - 1))


def policy() -> Policy:
    """The policy in the environment. Raises ValueError: it is invalid."""
    text = os.environ.get(RETRIES, "")
    if not text:
        return Policy()
    parts = text.split(",")
    require(len(parts) == 3, f"{RETRIES} '{text}': expected COUNT,SECONDS,FACTOR")
    return Policy(convert(parts[0], int, RETRIES), convert(parts[1], float, RETRIES), convert(parts[2], int, RETRIES))


def supervised(
    stage: str,
    function: Callable[Concatenate[str, Parameters], Result],
    run_id: str,
    work_uri: str,
    /,
    *args: Parameters.args,
    **values: Parameters.kwargs,
) -> Result:
    """Calls `function` with `work_uri` and `values` in another process; returns its result.
    Raises SystemExit: with the exit code of the last try; 137 if it was killed.

    Args:
        stage: the note's name.
        function: a module's function. Its parameters are JSON values; it returns a JSON value or a dataclass of these.
    """
    if stage != INPUTS:
        wait_for_credentials(work_uri, *(str(values.get(name) or "") for name in URI_VALUES))
    job = {
        "stage": stage, "module": function.__module__, "function": function.__name__,
        "values": {"work_uri": work_uri, **values},
    }  # fmt: skip
    with exiting(stage):
        allowed = policy()
        end_if_given_up(work_uri, stage, run_id)
    with stage_note(work_uri, stage, run_id=run_id) as note, tempfile.TemporaryDirectory(prefix="must-") as folder:
        note.source = Path(folder) / "note.json"
        (Path(folder) / "job.json").write_text(json.dumps(job))
        try:
            code = Supervisor(note, Path(folder), allowed, run_id).run()
        finally:
            note.update()
        if code:
            raise SystemExit(code)
        result = json.loads((Path(folder) / "result.json").read_text())
        kind: Any = get_type_hints(function)["return"]
        return kind(**result) if hasattr(kind, "__dataclass_fields__") else result


def end_if_given_up(work_uri: str, stage: str, run_id: str) -> None:
    """Ends this pod if an earlier one of this stage in this run has given up: the backend may retry any pod.

    Raises SystemExit: with the earlier exit code, wrong input or the time limit. The note stays as it is.
    """
    if not run_id:  # runs without an id share one folder of notes
        return
    with suppress(ValueError, OSError):
        note = decode_note(storage.read_bytes(storage.join(WorkUri(work_uri).notes(run_id), f"{stage}.json")))
        if note is not None and note.state == "failed" and note.code in (WRONG_INPUT, TIME_OVER):
            line = note.lines[-1] if note.lines else ""
            logger.warning(f"must {stage}: gave up before, with exit code {note.code}: {line}; start a new run")
            raise SystemExit(note.code)


class Supervisor:
    """The tries of one stage in this pod."""

    def __init__(self, note: Note, folder: Path, policy: Policy, run_id: str) -> None:
        self.note, self.folder, self.policy = note, folder, policy
        self.environment = child_environment() | {RESULT_FILE_ENV: str(folder / "note.json"), RUN_ID: run_id}
        self.stopping = threading.Event()
        limit = float(os.environ.get(TIME_LIMIT_ENV) or 0)
        self.deadline = time.monotonic() + limit if limit else None
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Runs the tries; returns the exit code of the last one."""
        with handling(signal.SIGTERM, self.forward):
            number = 0
            while True:
                started = time.monotonic()
                code = self.attempt()
                overtaken = (self.note.stage, code) == OVERTAKEN
                if code in NEVER_RETRIED or overtaken or self.stopping.is_set() or number >= self.policy.count:
                    return code
                number += 1
                self.note.failed_try(code, time.monotonic() - started, "")
                pause = self.policy.pause(number)
                how = "waits for the other run to end" if code == HELD else f"ended with exit code {code}"
                logger.warning(
                    f"must {self.note.stage}: try {number} of {self.policy.count + 1} {how}; "
                    f"trying again in {pause:g} s"
                )
                self.note.changed.set()
                if self.stopping.wait(pause):
                    return PREEMPTED
                if self.deadline and time.monotonic() > self.deadline:
                    return TIME_OVER

    def attempt(self) -> int:
        command = [sys.executable, "-m", "must.runtime.supervise", str(self.folder)]
        # In its own process group: so it gets a signal to this group only once, from `forward`.
        self.child = subprocess.Popen(command, env=self.environment, process_group=0)
        if self.stopping.is_set():  # the signal came before the child was started
            self.child.terminate()
        try:
            code = self.child.wait(self.deadline and max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return self.stop_at_limit(self.child)
        except KeyboardInterrupt:
            self.child.send_signal(signal.SIGINT)
            code = self.child.wait()
            self.stopping.set()
        if code == -signal.SIGTERM:
            return PREEMPTED
        return 128 - code if code < 0 else code

    def stop_at_limit(self, child: subprocess.Popen[bytes]) -> int:
        """Ends the stage with SIGTERM, so that training saves a checkpoint."""
        limit = os.environ[TIME_LIMIT_ENV]
        logger.warning(f"must {self.note.stage}: reached its time limit of {limit} s")
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return TIME_OVER

    def forward(self, number: int, frame: object) -> None:
        """Forwards a signal to the child."""
        self.stopping.set()
        if self.child is not None:
            with suppress(ProcessLookupError):
                self.child.send_signal(number)
        self.note.signalled = time.time()
        self.note.changed.set()  # another thread writes the note: half a second may be left


def work(folder: Path) -> None:
    """The supervised process: calls the function and writes its result to a file."""
    end_with_parent()
    job = json.loads((folder / "job.json").read_text())
    with exiting(job["stage"]):
        result = getattr(importlib.import_module(job["module"]), job["function"])(**job["values"])
    (folder / "result.json").write_text(json.dumps(result, default=dataclasses.asdict))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
