"""Stages that end in every way, for run/test_supervise.py: what they do is told by a file in the work folder."""

import json
import os
import signal
import time
from pathlib import Path

from must.base import storage
from must.base.storage import UnreachableError
from must.runtime.notes import Facts, stage_note


def unlucky(work_uri, how, times) -> int:
    """Ends as `how` says the first `times` times, then returns how often it was started."""
    started = Path(work_uri) / "started"
    count = len(started.read_text()) if started.exists() else 0
    started.write_text("x" * (count + 1))
    with stage_note(work_uri, "train", "checkpoints/k") as note:
        print(f"life {count + 1}", flush=True)
        if count < times:
            end(how)
        note.result, note.facts = "done at last", Facts(version="r1")
    return count + 1


def end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "store":
        raise UnreachableError("gs://b/x: the server could not be reached for 300 s")
    if how == "bug":
        raise RuntimeError("NCCL error: remote process exited")
    if how == "input":
        raise SystemExit(2)
    raise SystemExit(int(how))


def saving(work_uri) -> None:
    """Leaves a file and reads it."""
    with stage_note(work_uri, "train") as note:
        storage.write_bytes(storage.join(work_uri, "saved"), b"x")
        note.result = storage.read_bytes(storage.join(work_uri, "saved")).decode()


def patient(work_uri) -> None:
    """Saves when it is asked to stop, once the note says so: an order of events, no matter how fast."""

    def save(number, frame):
        note = Path(work_uri) / "notes" / "7" / "train.json"
        while not json.loads(note.read_text()).get("signalled"):
            time.sleep(0.01)
        (Path(work_uri) / "saved").write_text("")
        raise SystemExit(75)

    signal.signal(signal.SIGTERM, save)
    (Path(work_uri) / "started").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def endless(work_uri) -> None:
    """Saves when it is asked to stop."""

    def save(number, frame):
        (Path(work_uri) / "saved").write_text("")
        raise SystemExit(75)

    signal.signal(signal.SIGTERM, save)
    while True:
        time.sleep(0.05)
