"""A supervised training that is killed again and again makes the model of one that was left alone, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from must.data.format import load_index
from must.pods.notes import read_notes
from tests.common import ROOT
from tests.training.lives import SETTINGS, STEPS, difference, undisturbed, until_gone

KEPT = {name: value for name, value in SETTINGS.items() if name not in ("preset", "epochs")}


def start(digits, work, output):
    values = {"classifier": str(digits.classifier), "bundle": str(output), "preset": "digits", "settings": KEPT}
    values |= {"index_sha256": load_index(str(digits.shards)).sha256, "epochs": SETTINGS["epochs"], "processes": "2"}
    code = "from must.pods.supervise import run_supervised; "
    code += f"run_supervised('train', 'must.pods.training:train', 'r', {str(work)!r}, **{values!r})"
    environment = os.environ | {"MUST_RETRIES": "9,0,1", "OMP_NUM_THREADS": "1"}
    with (work / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=log, stderr=log)


def below(pid):
    """All processes that descend from one."""
    try:
        children = [int(number) for task in Path(f"/proc/{pid}/task").iterdir()
                    for number in (task / "children").read_text().split()]  # fmt: skip
    except OSError:
        return []
    return [*children, *(one for child in children for one in below(child))]


def steps(work):
    return len(list((work / "checkpoints").glob("*/step-*.json")))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(digits, tmp_path):
    """First of torchrun, above the processes that train; then of the pod's first process, which takes all along."""
    chance, work = random.Random(2), tmp_path / "killed"
    work.mkdir()
    (work / "shards").symlink_to(digits.shards)
    process = start(digits, work, tmp_path / "b")
    for what in ("worker", "pod"):
        before = steps(work)
        deadline = time.monotonic() + 120
        while steps(work) <= min(before, 1) or not below(process.pid):
            assert process.poll() is None and time.monotonic() < deadline, (work / "log").read_text()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.0))
        victims = below(process.pid)
        os.kill(process.pid if what == "pod" else victims[0], signal.SIGKILL)
        until_gone(victims)  # none trains on beside those of the next try
        if what == "pod":
            process.wait()
            process = start(digits, work, tmp_path / "b")
    assert process.wait(timeout=300) == 0, (work / "log").read_text()
    assert difference(undisturbed(digits, 2), tmp_path / "b") == 0.0
    (note,) = read_notes(str(work), "r")
    assert note.state == "done" and len(note.tries) == 2
    assert note.facts.result.startswith(f"{STEPS} steps, ")
