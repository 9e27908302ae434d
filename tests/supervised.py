"""Stages that end in every way, for runtime/test_supervise.py: what they do is told by a file in the work folder."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from must.api.run import run
from must.base import storage
from must.base.errors import UserError
from must.base.processes import DaemonThreads
from must.base.storage import UnreachableError


def unlucky(facts, work_uri, how, times) -> int:
    """Ends as `how` says the first `times` times, then returns how often it was started."""
    started = Path(work_uri) / "started"
    count = len(started.read_text()) if started.exists() else 0
    started.write_text("x" * (count + 1))
    facts.checkpoints = "checkpoints/k"
    facts.save()
    print(f"life {count + 1}", flush=True)
    if count < times:
        end(how)
    facts.result, facts.version = "done at last", "r1"
    DaemonThreads().submit(time.sleep, 60)  # as one that waits for a store
    return count + 1


def end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "pod killed":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if how == "store":
        raise UnreachableError("gs://b/x: the server could not be reached for 300 s")
    if how == "input":
        atexit.register(os.system, "echo nanobind: leaked 5 instances! >&2; echo See https://a.library >&2")
        raise UserError("gs://b/x: no such file; write it")
    if how == "signed":
        raise UserError('"https://b/x?sig=1" is no picture')
    if how == "bug":
        raise RuntimeError("NCCL error: remote process exited")
    raise SystemExit(int(how))


def call_stage(facts, work_uri, stage, **values) -> None:
    """The stage itself, without what its pod adds."""
    run(stage, **values)


def saving(facts, work_uri) -> None:
    """Leaves a file and reads it."""
    storage.write_bytes(storage.join(work_uri, "saved"), b"x")
    facts.result = storage.read_bytes(storage.join(work_uri, "saved")).decode()


def chatty(facts, work_uri) -> None:
    """Prints in every way, and leaves a process that holds its output open until the fifo `work_uri`/fifo is read."""
    print("one\na\rb", flush=True)
    print("two", file=sys.stderr)
    os.system("echo three")
    subprocess.Popen(["cat", f"{work_uri}/fifo"])


def patient(facts, work_uri, noted: bool = True) -> None:
    """Saves when it is asked to stop, once the note says so if it will: an order of events, no matter how fast."""

    def save(number, frame):
        note = Path(work_uri) / "notes" / "7" / "train.json"
        while noted and not json.loads(note.read_text()).get("signalled"):
            time.sleep(0.01)
        (Path(work_uri) / "saved").write_text("")
        raise SystemExit(75)

    signal.signal(signal.SIGTERM, save)
    facts.checkpoints = "checkpoints/k"
    facts.save()
    (Path(work_uri) / "started").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def late(facts, work_uri) -> str:
    """Succeeds after it was asked to stop."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    while not asked.is_set():
        time.sleep(0.05)
    return "done"
