"""The launcher's heartbeat, as its nodes see it: by their own clock, through outages, to the end."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from must.base import storage
from must.runtime import keepalive
from must.runtime.keepalive import keep_alive, watch, write_heartbeat


class Clock:
    """`over` of a watcher: each wait passes its seconds, and does what a test has for that moment."""

    def __init__(self, moments):
        self.now, self.moments = 0.0, moments

    def wait(self, seconds):
        self.now += seconds
        self.moments(self.now)
        return self.now > 3_000


@pytest.fixture
def stopped(monkeypatch):
    """When the watcher sent which signal to whom."""
    sent = []

    def run(uri, moments):
        clock = Clock(moments)
        monkeypatch.setattr(keepalive, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now))
        monkeypatch.setattr("os.kill", lambda *what: sent.append((clock.now, what)))
        watch(uri, 900.0, clock)
        return sent

    return run


@pytest.mark.parametrize(
    "sign, ended",
    [
        (lambda uri, now: write_heartbeat(uri) if now <= 1500 else None, 2400),
        (lambda uri, now: write_heartbeat(uri) if now % 870 == 0 else None, None),
        (lambda uri, now: None, 900),
        (lambda uri, now: storage.write_bytes(uri, json.dumps({"time": -now}).encode()), None),
    ],
    ids=["none after 25 minutes", "one that comes back in time", "none ever", "those of another clock, which change"],
)
def test_silence_ends_it_and_nothing_else(stopped, tmp_path, capsys, sign, ended):
    uri = str(tmp_path / "sign")
    sent = stopped(uri, lambda now: sign(uri, now))
    if ended is None:
        assert not sent
        return
    ((when, what),) = sent
    assert ended < when <= ended + 60 and what == (os.getpid(), signal.SIGTERM)
    assert "no heartbeat of the launcher for 900 s: saving a checkpoint and stopping" in capsys.readouterr().err


def test_a_place_that_does_not_answer_says_nothing_about_the_launcher(stopped, tmp_path, monkeypatch):
    uri = str(tmp_path / "sign")
    real, away = storage.read_bytes, []

    def read_bytes(place):
        if away:
            raise storage.UnreachableError("the server did not answer")
        return real(place)

    monkeypatch.setattr(storage, "read_bytes", read_bytes)

    def moments(now):
        away[:] = [1] if 600 < now <= 1800 else []
        if now <= 600 or now > 2600:  # the launcher could not write either, and needs a while to come back
            write_heartbeat(uri)

    assert not stopped(uri, moments)


def test_a_sign_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with keep_alive(str(tmp_path / "file" / "sign")):
        pass
    assert "the heartbeat could not be written" in capsys.readouterr().err


def test_the_signal_comes_to_the_process_itself(tmp_path):
    code = (
        "import sys, threading; from must.base.console import attach; attach()\n"
        "from must.runtime.keepalive import stop_when_orphaned\n"
        "with stop_when_orphaned(sys.argv[1], 0.2): threading.Event().wait()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "sign")]
    process = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert process.returncode == -signal.SIGTERM and "no heartbeat" in process.stderr


def test_the_sign_is_there_before_the_job_and_is_renewed(tmp_path, monkeypatch):
    uri = str(tmp_path / "sign")
    monkeypatch.setattr(keepalive, "LAUNCHER_HEARTBEAT_S", 0.01)
    with keep_alive(uri):
        first = storage.read_bytes(uri)
        while storage.read_bytes(uri) == first:
            pass
