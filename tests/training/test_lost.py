"""Several processes of which one is lost, and the launcher that a pipeline's component uses."""

import os
import signal
import subprocess
import sys
import time

import pytest

from must.api.run import run
from must.model.distributed import init_distributed
from tests.common import ROOT
from tests.training import lives
from tests.training.lives import ENVIRONMENT, SETTINGS, finish, log_of, ranks, start, wait_for_step
from tests.training.processes import on_ranks

LONG = {"epochs": 400}


@pytest.mark.slow
@pytest.mark.parametrize("number, lost", [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)], ids=str)
def test_the_others_end_when_a_process_is_lost(digits, tmp_path, number, lost):
    """At once when it was killed, after --timeout when it is frozen; the exit code says that a retry goes on."""
    output, timeout = tmp_path / "run", 8
    process = start(digits, output, 2, ("--shutdown-timeout", "2"), timeout=timeout, **LONG)
    wait_for_step(process, output, 4)
    pids = ranks(process)
    os.kill(pids[lost], number)
    began = time.monotonic()
    lives.until_gone([pids[1 - lost]])
    seconds = time.monotonic() - began
    assert seconds < timeout + 10, log_of(output)
    assert process.wait(timeout=120) == 75
    log = log_of(output)
    print(f"after {seconds:.1f} s:\n{log}")
    if number == signal.SIGKILL:
        assert f"rank {lost} (pid {pids[lost]}) was killed by SIGKILL" in log
    else:
        assert f"must: rank {1 - lost}: another process ended, or did not respond for {timeout} s" in log
    assert "Traceback" not in log


def fail_on_a_rank(failing):
    with init_distributed("cpu", 60) as world:
        if world.rank == failing:
            raise LookupError("what went wrong")
        try:
            world.sum(1)
        finally:
            time.sleep(2)  # torchrun orders failures by whole seconds; must's programs wait longer (RANK_DELAY_S)


@pytest.mark.slow
def test_the_first_error_is_in_torchruns_report(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from tests.training.test_lost import fail_on_a_rank\nfail_on_a_rank(1)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    root_cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root_cause and "LookupError: what went wrong" in root_cause, done.stderr


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(digits, tmp_path):
    output = tmp_path / "run"
    process = start(digits, output, 2, ("--max-restarts", "2"))
    wait_for_step(process, output, 6)
    os.kill(ranks(process)[1], signal.SIGKILL)
    finish(process, output)
    assert "going on after step" in log_of(output)
    assert lives.difference(output, lives.undisturbed(digits, 2)) == 0.0


def train_apart(values):
    """As if each process was on a node of its own, which has checkpoints of its own."""
    rank = os.environ["RANK"]
    os.environ |= {"GROUP_RANK": rank, "LOCAL_RANK": "0"}
    run("train", **values, checkpoints=f"{values['output']}-{rank}")


@pytest.mark.slow
def test_nodes_that_do_not_see_the_same_checkpoints_are_refused(digits, tmp_path):
    values = {**SETTINGS, "shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path / "run")}
    finish(start(digits, tmp_path / "first", 1, checkpoints=str(tmp_path / "run-0")), tmp_path / "first")
    refusal = r"UserError: .*some processes find a checkpoint of step 36 there, others one of step 0 \(0: none\)"
    with pytest.raises(AssertionError, match=refusal):
        on_ranks(2, train_apart, values)


@pytest.mark.slow
def test_the_launcher_hands_on_the_users_error_as_one_line(digits, tmp_path):
    assert start(digits, tmp_path / "run", 2, split="nothing").wait(timeout=120) == 2
    lines = log_of(tmp_path / "run").splitlines()
    assert [line for line in lines if "nothing" in line] == lines[-1:]
    assert lines[-1].startswith("must train: ") and "Traceback" not in log_of(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_launcher_hands_on_a_signal_and_says_that_a_retry_may_go_on(digits, tmp_path):
    output, values = tmp_path / "run", {"shards": digits.shards, "classifier": digits.classifier}
    values |= {**SETTINGS, **LONG, "output": str(output)}
    code = f"from must.pods.training import launch\nlaunch({values!r}, 2)"
    with output.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=os.environ | ENVIRONMENT)
    wait_for_step(process, output, 2)
    process.terminate()
    assert process.wait(timeout=120) == 75, log_of(output)
    assert "run the same command to go on" in log_of(output) and not (output / "model.json").exists()
