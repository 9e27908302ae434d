"""Runs that are killed, and runs that meet: real processes, real signals."""

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from must.base.program import HELD
from must.base.storage import TransientError
from must.data.format import verify
from must.data.image import decode as images_module
from must.data.image import limits
from must.data.shards.workdir import Workdir, make_temporary_folder
from tests import zoo
from tests.common import until
from tests.data.shards.test_shard import rejected, run, tree

PROGRAM = """
import sys
from must.base.program import exiting
from must.api.run import run
with exiting("shard"):
    run("shard", source=sys.argv[1], output=sys.argv[2], **eval(sys.argv[3]))
"""
OPTIONS = {"samples_per_shard": 6, "split": {"train": 0.8, "test": 0.2}}


def command(source: Path | str, output: Path | str, before: str = "", **options: Any) -> list[str]:
    """`must shard` in a process of its own, and code that runs before it."""
    return [sys.executable, "-c", before + PROGRAM, str(source), str(output), repr(options)]


@contextmanager
def start(source: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    words = command(source, output, workers=2, **OPTIONS)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


KILLED = """
import os, signal
os.setsid()  # a group of its own, which is killed whole
from must.data.shards import chunk
module, name = {function}
whole, made = getattr(module, name), []

def killing(place, *more, **named):
    if "chunk-" in str(place):
        made.append(place)
        if len(made) == 3:
            os.killpg(0, signal.SIGKILL)  # with the process that decodes for it
    return whole(place, *more, **named)

setattr(module, name, killing)
"""
KILLED_DECODING = KILLED.format(function="chunk.storage, 'write_bytes'")
"""Code in front of a command: killed when the third chunk's tars are there and its record is not."""
KILLED_ASSEMBLING = KILLED.format(function="chunk, 'move_tar'")
"""Killed when two shards are there."""
ELSEWHERE = "import socket\nsocket.gethostname = lambda: 'another-pod'\n"
"""As on another machine."""


def interrupted(source: Path, output: Path, **options: Any) -> None:
    """Leaves what a run has left that was killed before it could write the index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workdir, "remove_strays", lambda self, known: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(source, output, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restart") / "in"
    zoo.fill(folder, 240)
    (folder / "00007.png").write_bytes(b"bad")
    (folder / "00008.png").write_bytes((folder / "00009.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run with OPTIONS makes that nothing happens to."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(images, output, **OPTIONS)
    return tree(output)


def test_a_killed_run_continues_to_the_same_bytes(images, whole, tmp_path, capsys):
    output = tmp_path / "killed"
    words = command(images, output, KILLED_ASSEMBLING, workers=2, **OPTIONS)
    assert subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert list(output.glob("train-*.tar")) and not (output / "index.json").exists()
    run(images, output, **OPTIONS)
    assert "40 chunks are done already" in capsys.readouterr().out
    assert tree(output) == whole


def test_other_settings_do_not_continue_a_killed_run(images, tmp_path):
    output, options = tmp_path / "out", {"samples_per_shard": 50}
    interrupted(images, output, **OPTIONS)
    run(images, tmp_path / "whole", **options)
    run(images, output, **options)
    assert tree(output) == tree(tmp_path / "whole")


def test_the_second_of_two_runs_refuses(images, whole, tmp_path):
    output = tmp_path / "out"
    with start(images, output) as first:
        until(lambda: len(list(output.glob(".shard/*.npz"))) >= 1)
        first.send_signal(signal.SIGSTOP)
        with start(images, output) as second:
            assert second.wait(120) == HELD
            message = second.stderr.read()
        assert f"being written by another `must shard` (process {first.pid}" in message
        assert message.count("\n") == 1
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 0
    assert tree(output) == whole


def test_sigterm_ends_in_good_order_with_code_75(images, tmp_path):
    output = tmp_path / "out"
    with start(images, output) as process:
        until(lambda: len(list(output.glob(".shard/*.npz"))) >= 1)
        process.terminate()
        assert process.wait(120) == 75
        assert "run the same command again" in process.stderr.read()
    assert (output / ".shard").exists() and not (output / ".shard.lock").exists()
    assert not list(output.rglob(".tmp-*"))
    run(images, output, **OPTIONS)
    verify(str(output))


def act_at_50_pixels(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """In the worker that checks a picture of 50 x 50 pixels."""

    def check(image: Any) -> None:
        if image.size == (50, 50):
            act()

    patch.setattr(images_module, "check", check)


def busy() -> None:
    while True:
        pass


def crash() -> None:
    faulthandler.disable()  # pytest's, which would print it
    os.kill(os.getpid(), signal.SIGILL)


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers see what is patched here")
@pytest.mark.parametrize(
    "act, reason, count",
    [
        (busy, "takes more than 0.6 s of one core", 1),
        (lambda: bytearray(60_000_000_000), "too large for the memory", 2),
        (crash, "its decoder crashed (SIGILL)", 2),
    ],
    ids=["busy", "hungry", "crashing"],
)
def test_a_picture_that_takes_more_than_any_may_is_rejected_alone(tmp_path, monkeypatch, act, reason, count):
    zoo.fill(tmp_path / "in", 30)
    names = [f"bad-{number}.png" for number in range(3)]
    zoo.put(tmp_path / "in", {name: zoo.encoded(zoo.picture(n, 50, 50)) for n, name in enumerate(names)})
    act_at_50_pixels(monkeypatch, act)
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.6)
    made = run(tmp_path / "in", tmp_path / "out", samples_per_shard=7, workers=count, max_rejected=0.5)
    assert rejected(tmp_path / "out") == dict.fromkeys(names, reason)
    assert made.splits["train"]["samples"] == 30
    assert not list((tmp_path / "out").rglob(".tmp-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers see what is patched here")
def test_a_killed_worker_is_asked_for_its_file(tmp_path, monkeypatch):
    """As the system does it when memory is full; the run goes on once that is mended."""
    zoo.fill(tmp_path / "in", 30)
    (tmp_path / "in" / "huge\x1b.png").write_bytes(zoo.encoded(zoo.picture(0, 50, 50)))
    with monkeypatch.context() as patch:
        act_at_50_pixels(patch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(TransientError, match=r"fewer --workers; it was at one of: .*huge\x1b\.png"):
            run(tmp_path / "in", tmp_path / "out", workers=2, samples_per_shard=5)
    assert run(tmp_path / "in", tmp_path / "out", workers=2, samples_per_shard=5).splits["train"]["samples"] == 31


def test_temporary_folders_of_killed_processes_go(tmp_path, monkeypatch):
    """Those for the lists of a run whose output is a bucket."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = make_temporary_folder()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    Path(str(mine).replace(f"-{os.getpid()}-", f"-{dead.pid}-")).mkdir()
    assert {mine, make_temporary_folder()} == set(tmp_path.iterdir())
