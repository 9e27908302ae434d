"""A stage tries again what may pass, in its own pod: real processes that are killed, stopped and refused."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from must.base.processes import is_running
from must.data.shards.workdir import SHARDS_LOCK
from must.pods import supervise
from must.pods.notes import Note, read_notes
from must.pods.summary import summarize
from must.pods.supervise import LONGEST_WAIT, Policy, run_supervised
from tests.base.test_lock import hold
from tests.common import ROOT, until
from tests.registry.bundles import make_bundle

CALL = "tests.supervised:call_stage"


@pytest.fixture
def retries(monkeypatch):
    monkeypatch.chdir(ROOT)
    return lambda text: monkeypatch.setenv("MUST_RETRIES", text)


def run(work, how, times):
    return run_supervised("train", "tests.supervised:unlucky", "7", str(work), how=how, times=times)


@pytest.mark.parametrize("how, code", [("killed", 137), ("store", 75), ("bug", 1)])
def test_what_may_pass_is_tried_again(tmp_path, retries, how, code, capfd):
    retries("3,0,2")
    assert run(tmp_path, how, times=1) == 2
    (note,) = read_notes(str(tmp_path), "7")
    assert note.state == "done" and note.tries == [code]
    assert (note.facts.result, note.facts.version, note.facts.checkpoints) == ("done at last", "r1", "checkpoints/k")
    shown = capfd.readouterr()
    assert "life 1" in shown.out and f"try 1 of 4 ended with exit code {code}; trying again in 0 s" in shown.err
    last = {"killed": "life 1", "store": "must train: gs://b/x: the server could not be reached for 300 s",
            "bug": "RuntimeError: NCCL error: remote process exited"}[how]  # fmt: skip
    assert note.lines[-2:] == [last, "life 2"]


@pytest.mark.parametrize("how, code", [("input", 2), ("124", 124)], ids=["wrong input", "time limit"])
def test_wrong_input_and_a_reached_limit_are_never_tried_again(tmp_path, retries, capfd, how, code):
    retries("3,0,2")
    with pytest.raises(SystemExit) as error:
        run(tmp_path, how, times=9)
    (note,) = read_notes(str(tmp_path), "7")
    assert error.value.code == note.code == code and (tmp_path / "started").read_text() == "x" and not note.tries
    written = (tmp_path / "notes" / "7" / "train.json").read_bytes()
    with pytest.raises(SystemExit) as again:  # a new pod, of a backend that retries always
        run(tmp_path, how, times=9)
    assert again.value.code == code and (tmp_path / "started").read_text() == "x"
    assert (tmp_path / "notes" / "7" / "train.json").read_bytes() == written
    why = ": gs://b/x: no such file; write it" if how == "input" else ""
    assert f"must train: gave up before, with exit code {code}{why}; start a new run" in capfd.readouterr().err


@pytest.mark.parametrize(
    "how, code, why",
    [
        ("input", 2, "gs://b/x: no such file; write it · wrong input"),
        ("bug", 1, "RuntimeError: NCCL error: remote process exited · an error"),
        ("store", 75, "gs://b/x: the server could not be reached for 300 s · a dependency failed"),
        ("9", 9, "an error in the program"),
        ("signed", 2, '"https://b/x?***" is no picture · wrong input'),
    ],
)
def test_the_reason_is_what_the_stage_said_whatever_is_printed_after_it(tmp_path, retries, how, code, why):
    """A library may write to stderr when the interpreter ends."""
    retries("")
    with pytest.raises(SystemExit, match=str(code)):
        run(tmp_path, how, times=9)
    page = summarize(str(tmp_path), "7", "again").to_markdown()
    assert page.splitlines()[2].startswith(f"- **Why**: {why}")
    assert how != "input" or page.splitlines()[-2] == "See https://a.library", "the log stays as it was"


@pytest.mark.parametrize("allowed, lives", [("2,0,2", 3), ("", 1)])
def test_it_is_given_up_after_as_many_tries_as_cluster_yaml_says(tmp_path, retries, allowed, lives):
    retries(allowed)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, "killed", times=9)
    (note,) = read_notes(str(tmp_path), "7")
    assert error.value.code == note.code == 137 and note.state == "failed" and len(note.tries) == lives - 1
    assert (tmp_path / "started").read_text() == "x" * lives
    assert f"life {lives}" in note.lines  # said before it was killed


def test_output_is_passed_on_its_end_is_kept_and_no_process_holds_a_stage_up(tmp_path, retries, capfd, monkeypatch):
    retries("")
    monkeypatch.setattr(supervise, "DRAIN_TIMEOUT", 1.0)
    os.mkfifo(tmp_path / "fifo")
    run_supervised("train", "tests.supervised:chatty", "7", str(tmp_path))
    assert capfd.readouterr().out == "one\na\rb\ntwo\nthree\n"
    (note,) = read_notes(str(tmp_path), "7")
    assert note.state == "done" and note.lines == ["one", "b", "two", "three"]
    (tmp_path / "fifo").open("w").close()  # the process lives until now


def test_a_pod_that_follows_a_killed_one_counts_its_try(tmp_path):
    assert start(tmp_path, "unlucky", how="pod killed", times=1).wait(timeout=60) == -signal.SIGKILL
    (note,) = read_notes(str(tmp_path), "7")
    assert note.state == "running"
    assert start(tmp_path, "unlucky", how="killed", times=1).wait(timeout=60) == 0
    (note,) = read_notes(str(tmp_path), "7")
    assert note.state == "done" and note.tries == [None]


def test_notes_that_cannot_be_written_do_not_stop_the_stage(tmp_path, retries, capfd):
    retries("")
    (tmp_path / "notes").write_text("a file where the folder should be")
    assert run(tmp_path, "killed", times=0) == 1
    assert "the stage's note could not be written" in capfd.readouterr().err


def test_pauses_grow_to_an_hour():
    policy = Policy(9, 60, 2)
    assert [policy.pause(number) for number in (1, 2, 3)] == [60, 120, 240] and policy.pause(9) == LONGEST_WAIT


def start(work, function, **values):
    """A supervisor that is a process of its own."""
    code = "from must.pods import supervise; supervise.NOTE_S = 0.5; "
    code += f"supervise.run_supervised('train', 'tests.supervised:{function}', '7', {str(work)!r}, **{values!r})"
    environment = os.environ | {"MUST_RETRIES": "3,1000,2"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, start_new_session=True)


def test_sigterm_is_handed_on_written_down_at_once_and_ends_it(tmp_path):
    assert supervise.NOTE_S <= 10
    process = start(tmp_path, "patient")
    until((tmp_path / "started").exists, process=process)
    until(lambda: read_notes(str(tmp_path), "7")[0].facts.checkpoints, process=process)  # soon after it said so
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75 and (tmp_path / "saved").exists()
    (note,) = read_notes(str(tmp_path), "7")
    assert note.signalled and (note.state, note.code, note.tries) == ("failed", 75, [])


def test_the_handler_of_a_signal_takes_no_lock_that_the_main_thread_may_hold(tmp_path):
    supervisor: Any = supervise.Supervisor(Note("train"), tmp_path, Policy(0, 0, 1), str(tmp_path), "7")
    handler = threading.Thread(target=supervisor.forward, args=(signal.SIGTERM, None), daemon=True)
    with supervisor.stopping._cond, supervisor.changed._cond:
        handler.start()
        handler.join(30)
        assert not handler.is_alive()


def test_at_its_time_limit_a_stage_is_ended_as_by_a_signal_but_nobody_calls_it_stopped(tmp_path, retries, monkeypatch):
    retries("3,0,2")
    monkeypatch.setenv("MUST_TIME_LIMIT", "4")
    with pytest.raises(SystemExit) as error:
        run_supervised("train", "tests.supervised:patient", "7", str(tmp_path), noted=False)
    (note,) = read_notes(str(tmp_path), "7")
    assert error.value.code == note.code == 124 and not note.tries and (tmp_path / "saved").exists()
    page = summarize(str(tmp_path), "7", "again").to_markdown()
    assert page.startswith("# Run failed: train: its time was over")


def test_a_stage_that_succeeds_after_its_time_limit_is_done(tmp_path, retries, monkeypatch):
    retries("")
    monkeypatch.setenv("MUST_TIME_LIMIT", "3")
    for _ in range(2):  # a later pod of the run is not told to give up
        assert run_supervised("train", "tests.supervised:late", "7", str(tmp_path)) == "done"
        (note,) = read_notes(str(tmp_path), "7")
        assert (note.state, note.code) == ("done", 0) and "reached its time limit of 3 s" in note.lines[-1]


def test_a_pause_that_would_end_after_the_time_limit_is_not_begun(tmp_path, retries, monkeypatch):
    retries("3,30,2")
    monkeypatch.setenv("MUST_TIME_LIMIT", "20")
    begun = time.monotonic()
    with pytest.raises(SystemExit, match="124"):
        run(tmp_path, "killed", times=9)
    (note,) = read_notes(str(tmp_path), "7")
    assert time.monotonic() - begun < 20 and (tmp_path / "started").read_text() == "x" and not note.tries
    assert note.lines[-1].endswith("ended with exit code 137; its time limit of 20 s is too near for another try")


def test_sigterm_ends_the_pause_between_two_tries(tmp_path):
    process = start(tmp_path, "unlucky", how="killed", times=1)
    until(lambda: [note.tries for note in read_notes(str(tmp_path), "7") if note.tries], process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75 and (tmp_path / "started").read_text() == "x"


def test_a_supervisor_that_is_killed_takes_its_stage_along(tmp_path):
    process = start(tmp_path, "patient")
    until(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text(), process=process)
    child = int((tmp_path / "started").read_text())
    process.kill()
    process.wait()
    until(lambda: not is_running(child))


def test_a_process_whose_launcher_died_while_it_was_still_importing_ends_before_it_begins(tmp_path):
    """Else torchrun, which takes seconds to import, would train on beside the retry of the stage that started it."""
    go, begun = tmp_path / "go", tmp_path / "begun"
    child = f"""
import pathlib, time
from must.base.processes import end_with_parent
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)
end_with_parent()
pathlib.Path({str(begun)!r}).touch()
"""
    parent = f"""
import subprocess, sys
from must.base.processes import make_child_environment
print(subprocess.Popen([sys.executable, "-c", {child!r}], env=make_child_environment(), stdout=2).pid)
"""
    orphan = int(subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=True).stdout)
    assert is_running(orphan)
    go.touch()
    until(lambda: not is_running(orphan))
    assert not begun.exists()


def test_a_place_that_another_run_holds_is_waited_for_and_then_refused_with_its_own_code(tmp_path, retries, capfd):
    other = hold(tmp_path / "shards", SHARDS_LOCK, MUST_RUN_ID="1f2e")
    (tmp_path / "in").mkdir()
    given = {"source": str(tmp_path / "in"), "output": str(tmp_path / "shards")}
    retries("1,0,2")
    try:
        with pytest.raises(SystemExit, match="73"):
            run_supervised("shard", CALL, "7", str(tmp_path), stage="shard", **given)
    finally:
        other.communicate("")
    (note,) = read_notes(str(tmp_path), "7")
    assert note.tries == [73]
    assert "waits for the other run to end; trying again in 0 s" in capfd.readouterr().err
    page = summarize(str(tmp_path), "7", "again").to_markdown().splitlines()
    assert page[0] == r"# Run stopped: another run is writing to this work\_uri"
    assert page[2].startswith("- **Why**: ") and "(run 1f2e, process " in page[2]


def test_a_run_that_another_one_overtook_is_not_tried_again_and_nothing_is_called_wrong_input(tmp_path, retries):
    """A real promotion of a model that was compared with no champion, while there is one by now."""
    for name, seed in (("a", 1), ("b", 2)):
        make_bundle(tmp_path / name, seed=seed)
    given = {"registry": str(tmp_path / "registry"), "name": "digits", "champion": "none"}
    retries("3,60,2")
    first, second = (given | {"model": str(tmp_path / name)} for name in ("a", "b"))
    run_supervised("promote", CALL, "6", str(tmp_path), stage="promote", **first)
    with pytest.raises(SystemExit, match="73"):
        run_supervised("promote", CALL, "7", str(tmp_path), stage="promote", **second)
    (note,) = read_notes(str(tmp_path), "7")
    assert (note.code, note.tries) == (73, [])
    page = summarize(str(tmp_path), "7", "again").to_markdown()
    assert page.startswith("# Run stopped: another run promoted a model meanwhile; run it again\n")
    assert "another run promoted meanwhile. Run again" in page and "wrong input" not in page


@pytest.mark.slow
@pytest.mark.parametrize("bucket_server", ["s3"], indirect=True)
def test_keys_that_are_refused_for_a_while_cost_no_try_no_note_and_no_page(bucket_server, retries, monkeypatch):
    """Three requests of four are refused, the notes' and the page's too; the first look at a run waits for none."""
    monkeypatch.setenv("MUST_RETRY_AUTH_ERRORS_AT", "")
    retries("3,0,2")
    work = f"{bucket_server.uri}/work"
    bucket_server.faults.plan = ["403", "403", "403", ""]
    run_supervised("train", "tests.supervised:saving", "7", work)
    (note,) = read_notes(work, "7")
    assert (note.state, note.facts.result, note.tries) == ("done", "x", [])
    assert "| train | done | 1 |" in summarize(work, "7", "again").to_markdown()
    monkeypatch.setenv("MUST_RETRY_AUTH_ERRORS_AT", "")
    bucket_server.faults.plan = ["403"]
    with pytest.raises(SystemExit, match="2"):
        run_supervised("inputs", "tests.supervised:saving", "8", work)
