"""Several processes of which one is lost, and the launcher that a pipeline's component uses."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from must.api.stages import call
from tests.method.train.lives import (
    ENVIRONMENT,
    SETTINGS,
    difference,
    finish,
    log_of,
    ranks,
    start,
    undisturbed,
    wait_for_step,
)  # fmt: skip
from tests.method.train.processes import on_ranks

ROOT = Path(__file__).parents[3]
LONG = {"epochs": 400}


def must_lines(output):
    return [line for line in log_of(output).splitlines() if line.startswith("must: ")]


@pytest.mark.slow
def test_a_frozen_process_is_named_and_the_others_do_not_wait_for_ever(digits, tmp_path):
    output, rank = tmp_path / "run", 0
    process = start(digits, output, 2, ("--shutdown-timeout", "2"), timeout=6, **LONG)
    wait_for_step(process, output, 4)
    pid = ranks(process)[rank]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert process.wait(timeout=120) == 75
    (line,) = must_lines(output)
    print(f"after {time.monotonic() - began:.1f} s: {line}")
    assert line.startswith(f"must: rank {rank} (pid {pid} on ") and "no heartbeat for 6 s" in line
    assert "in step" in line and "run the same command again" in line


@pytest.mark.slow
def test_a_killed_process_is_named(digits, tmp_path):
    output, rank = tmp_path / "run", 0
    process = start(digits, output, 2, timeout=60, **LONG)
    wait_for_step(process, output, 4)
    pid = ranks(process)[rank]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(timeout=120) == 75
    print(f"after {time.monotonic() - began:.1f} s:\n{log_of(output)}")
    (line,) = must_lines(output)
    assert f"rank {rank} (pid {pid} on " in line and "is lost: " in line and "in step" in line
    assert f"rank {rank} (pid {pid}) was killed by SIGKILL" in log_of(output)
    assert "Traceback" not in log_of(output)


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(digits, tmp_path):
    output = tmp_path / "run"
    process = start(digits, output, 2, ("--max-restarts", "2"))
    wait_for_step(process, output, 6)
    os.kill(ranks(process)[1], signal.SIGKILL)
    finish(process, output)
    assert "going on after step" in log_of(output)
    assert difference(output, undisturbed(digits, 2)) == 0.0


def train_apart(values):
    """As if each process was on a node of its own, which has checkpoints of its own."""
    rank = os.environ["RANK"]
    os.environ |= {"GROUP_RANK": rank, "LOCAL_RANK": "0"}
    call("train", **values, checkpoints=f"{values['output']}-{rank}")


@pytest.mark.slow
def test_nodes_that_do_not_see_the_same_checkpoints_are_refused(digits, tmp_path):
    values = {**SETTINGS, "shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path / "run")}
    finish(start(digits, tmp_path / "first", 1, checkpoints=str(tmp_path / "run-0")), tmp_path / "first")
    refusal = r"UserError: .*some processes find a checkpoint of step 36 there, others one of step 0 \(0: none\)"
    with pytest.raises(AssertionError, match=refusal):
        on_ranks(2, train_apart, values)


LAUNCH = """
import json, sys
from must.runtime.training import launch
values = json.loads(sys.argv[1])
launch(values, 2)
"""


def launching(digits, output, **changes):
    values = {**SETTINGS, "shards": digits.shards, "classifier": digits.classifier, "output": str(output), **changes}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCH), json.dumps(values)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.slow
def test_the_launcher_hands_on_the_users_error_as_one_line(digits, tmp_path):
    process = launching(digits, tmp_path / "run", split="nothing")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert [line for line in err.splitlines() if "nothing" in line] == err.strip().splitlines()[-1:]
    assert err.strip().splitlines()[-1].startswith("must train: ") and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_launcher_hands_on_a_signal_and_says_that_a_retry_may_go_on(digits, tmp_path):
    output = tmp_path / "run"
    process = launching(digits, output, **LONG)
    wait_for_checkpoint(process, output)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "run the same command to go on" in out
    assert not (output / "model.json").exists()


def wait_for_checkpoint(process, output):
    deadline = time.monotonic() + 120
    while not list((output / "checkpoints").glob("step-*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
