"""Checkpoints by the clock: when one is due, who says so, and that they change nothing."""

import threading
from types import SimpleNamespace

import pytest
import torch

from must.method.train import train_state
from must.method.train.checkpoint import Checkpoints
from must.method.train.train_state import SHARE, CheckpointTimer
from must.method.train.trainer import train
from tests.method.train.lives import difference
from tests.method.train.test_resume import STEPS, config


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; `tick`: what it moves by itself at each look."""
    state = SimpleNamespace(now=0.0, tick=0.0)

    def monotonic():
        state.now += state.tick
        return state.now

    monkeypatch.setattr(train_state, "time", SimpleNamespace(monotonic=monotonic))
    return state


def test_one_is_due_after_its_seconds_and_is_asked_for_once(clock):
    asked = CheckpointTimer(60)
    clock.now = 59.9
    assert not asked.due(busy=False)
    clock.now = 60.0
    assert not asked.due(busy=True)  # saving would wait for the one before
    assert asked.due(busy=False) and not asked.due(busy=False)  # on a GPU the answer comes a step later
    asked.saved(cost=0.1)
    clock.now = 119.9
    assert not asked.due(busy=False)
    clock.now = 120.0
    assert asked.due(busy=False)


def test_saving_that_costs_much_is_done_less_often(clock):
    asked = CheckpointTimer(60)
    asked.saved(cost=10.0)
    clock.now = 10 * SHARE - 0.1
    assert not asked.due(busy=False)
    clock.now = 10 * SHARE
    assert asked.due(busy=False)


def test_without_seconds_none_is_ever_due(clock):
    clock.tick = 1e6
    assert not CheckpointTimer(0).due(busy=False)


@pytest.mark.slow
def test_a_run_saves_by_the_clock_and_makes_the_same_model(digits, tmp_path, clock):
    train(config(digits, tmp_path / "steps", checkpoint_every=10**6))
    clock.tick = 40.0
    changes = {"checkpoint_every": 10**6, "checkpoint_seconds": 60, "keep_checkpoints": 99}
    train(config(digits, tmp_path / "clock", **changes))
    saved = [int(file.stem[5:]) for file in sorted((tmp_path / "clock" / "checkpoints").glob("step-*.json"))]
    assert len(saved) > 2 and saved[-1] == STEPS
    assert len(list((tmp_path / "steps" / "checkpoints").glob("step-*.json"))) == 1
    assert difference(tmp_path / "clock", tmp_path / "steps") == 0.0


def test_a_checkpoint_that_is_being_written_keeps_it_busy(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path))
    go_on = threading.Event()
    monkeypatch.setattr(checkpoints, "_write", lambda step, state: go_on.wait(60))
    assert not checkpoints.busy
    checkpoints.save(1, {"x": torch.zeros(1)})
    assert checkpoints.busy
    go_on.set()
    checkpoints.close()
    assert not checkpoints.busy
