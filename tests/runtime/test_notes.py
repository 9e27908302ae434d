"""What stages leave for the run's summary, however they end."""

import os
import subprocess
import sys
import time

import pytest

from must.base import storage
from must.data.format.index import load_index
from must.runtime import notes, training
from must.runtime.notes import read_notes, stage_note
from must.runtime.summary import summarize
from must.runtime.training import mirrored


def stage(work, body):
    """A real process that runs `body` as the stage train."""
    code = "import os, sys, signal\nfrom must.runtime.notes import stage_note\n"
    code += f"with stage_note({str(work)!r}, 'train', {str(work)!r}):\n"
    code += "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def summary(work, run_id=""):
    return summarize(str(work), run_id, None, "submit.py --again 7").to_markdown()


KILLED = "print('x', flush=True); os.kill(os.getpid(), signal.SIGKILL)"


def test_lines_appear_where_they_always_do_and_in_the_note(tmp_path):
    result = stage(tmp_path, "print('one')\nprint('two', file=sys.stderr)\nos.system('echo three')\nprint('a\\rb')")
    assert sorted(result.stdout.split()) == ["a", "b", "one", "three"] and result.stderr == "two\n"
    (note,) = read_notes(str(tmp_path))
    assert note.state == "done" and sorted(note.lines) == ["b", "one", "three", "two"]


@pytest.mark.parametrize(
    "body, why, resumable",
    [
        ("print('x'); raise SystemExit(75)", "a dependency failed (exit code 75)", "yes; training goes on from"),
        ("print('x'); raise SystemExit(2)", "wrong input (exit code 2)", "after the input is corrected"),
        ("print('x'); 1 / 0", "an error in the program or the machine (exit code 1)", "perhaps; training goes on"),
        (KILLED, "its pod is lost, cause unknown", "yes; training goes"),
    ],
)
def test_each_way_to_fail_has_its_summary(tmp_path, body, why, resumable):
    (tmp_path / "LAST").write_text("step-000000400")
    stage(tmp_path, body)
    page = summary(tmp_path)
    assert page.startswith("# Run failed: train: ")
    assert page.splitlines()[2].startswith("- **Why**: ") and why in page.splitlines()[2]
    assert f"- **Resumable**: {resumable}" in page
    assert "step-000000400" in page and "`submit.py --again 7`" in page
    if "1 / 0" in body:
        assert "ZeroDivisionError" in page.split("```")[1]
        assert page.splitlines()[2].startswith("- **Why**: ZeroDivisionError: division by zero · ")


SLOW_READERS = """\
import threading, time
from must.runtime.notes import Tail
add = Tail.add
main = threading.current_thread()
Tail.add = lambda tail, text: (time.sleep(0.1 * (threading.current_thread() is not main)), add(tail, text))
"""


def test_the_last_lines_are_waited_for_and_a_traceback_stands_behind_them(tmp_path):
    """Readers as slow as on a machine that is busy with other things."""
    stage(tmp_path, SLOW_READERS + "print('out')\nprint('why', file=sys.stderr)\n1 / 0")
    (note,) = read_notes(str(tmp_path))
    assert (note.state, note.code) == ("failed", 1) and sorted(note.lines[:2]) == ["out", "why"]
    assert note.lines[-1] == "ZeroDivisionError: division by zero"


def test_a_child_that_outlives_the_stage_does_not_hold_it_up(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    body = "from must.runtime import notes\nnotes.DRAIN_TIMEOUT = 1.0\nimport subprocess\nprint('x')\n"
    stage(tmp_path, body + f"subprocess.Popen(['cat', {str(tmp_path / 'fifo')!r}])")
    (note,) = read_notes(str(tmp_path))
    assert note.state == "done" and note.lines == ["x"]
    (tmp_path / "fifo").open("w").close()  # the child lives until now: the stage did not wait for it


def test_runs_of_one_place_keep_their_notes_apart(tmp_path):
    with stage_note(str(tmp_path), "shard", run_id="a") as note:
        note.result = "5 images"
    with pytest.raises(SystemExit), stage_note(str(tmp_path), "train", run_id="b"):
        raise SystemExit(2)
    assert "| shard | done | 1 | 0 s | 5 images |" in summary(tmp_path, run_id="a")
    assert "train" not in summary(tmp_path, run_id="a") and "shard" not in summary(tmp_path, run_id="b")
    assert "No stage left a note of a failure" in summary(tmp_path, run_id="c")


def test_a_stage_that_is_started_again_says_what_became_of_the_tries_before(tmp_path):
    stage(tmp_path, KILLED)
    stage(tmp_path, "print('y'); raise SystemExit(1)")
    stage(tmp_path, "print('z'); raise SystemExit(2)")
    (note,) = read_notes(str(tmp_path))
    assert [one.code for one in note.tries] == [None, 1] and note.tries[1].line == "y"
    assert "**Tried**: 3 times; before: no exit code after" in summary(tmp_path)
    stage(tmp_path, "pass")
    assert "| train | done | 4 |" in summary(tmp_path)


def test_what_a_stage_tells_soon_after_it_began_is_in_its_note_soon(tmp_path, monkeypatch):
    """Its checkpoints' place, say: a node that is lost within the first minute must not seem to have saved nothing."""
    monkeypatch.setattr(notes, "FIRST", 0.05)
    with stage_note(str(tmp_path), "train") as note:
        note.checkpoints = "/w/checkpoints/k"
        deadline = time.monotonic() + 45  # less than the minute that comes between later writings
        while not read_notes(str(tmp_path))[0].checkpoints:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_place_that_cannot_be_written_to_does_not_stop_the_stage(tmp_path, capfd):
    (tmp_path / "notes").write_text("a file where the folder should be")
    with stage_note(str(tmp_path), "shard"):
        print("working")
    shown = capfd.readouterr()
    assert "working" in shown.out and "the stage's note could not be written" in shown.err


def test_notes_and_curves_go_to_a_bucket_while_the_stage_runs(bucket_server, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "COPY_EVERY_S", 0.05)
    folder, place = tmp_path / "tensorboard", f"{bucket_server.uri}/curves"
    with stage_note(bucket_server.uri, "train"), mirrored(str(folder), place):
        assert read_notes(bucket_server.uri)[0].state == "running"
        folder.mkdir()
        (folder / "events.out.tfevents.1").write_bytes(b"a")
        deadline = time.monotonic() + 60
        while not storage.exists(f"{place}/events.out.tfevents.1"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (folder / "events.out.tfevents.1").write_bytes(b"ab")
    assert storage.read_bytes(f"{place}/events.out.tfevents.1") == b"ab"
    assert read_notes(bucket_server.uri)[0].state == "done"


def test_the_users_error_is_a_line_and_its_code_and_a_bug_keeps_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="holds no index"), stage_note(str(tmp_path), "evaluate"):
        load_index(str(tmp_path / "nowhere"))
    with pytest.raises(ZeroDivisionError), stage_note(str(tmp_path), "train"):
        1 / 0  # noqa: B018
    wrong, bug = read_notes(str(tmp_path))
    assert (wrong.state, wrong.code) == ("failed", 2) and wrong.lines[-1].startswith("must evaluate: ")
    assert (bug.state, bug.code) == ("failed", 1) and any("Traceback" in line for line in bug.lines)
