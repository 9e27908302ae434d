"""Going on under circumstances: checkpoints on a bucket, shards that cannot be reached, a signal that comes twice."""

import signal
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from must.base import storage
from must.base.program import end_program, handling
from must.data.reader import ShardReader
from must.model.distributed import StopSignal, init_distributed
from must.training import checkpoint
from must.training.checkpoint import SHARE, Checkpoints, RunTimer, TrainProgress
from must.training.trainer import train
from tests.common import until
from tests.training import lives
from tests.training.lives import difference, finish, log_of, start, training, undisturbed
from tests.training.processes import on_ranks
from tests.training.step_ranks import ALONE

STEPS = 12
config = partial(training, epochs=4, batch_size=50, workers=0, checkpoint_every=2, seed=1, log_every=2)


@pytest.mark.slow
def test_a_retry_on_another_machine_goes_on_from_the_bucket(digits, bucket_server, tmp_path):
    uri, first, second = bucket_server.uri + "/run", tmp_path / "first", tmp_path / "second"
    process = start(digits, first, checkpoints=uri)
    until(lambda: storage.exists(f"{uri}/LAST"), lambda: log_of(first), process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, log_of(first)
    assert 0 < Checkpoints(uri).steps()[-1] < lives.STEPS
    finish(start(digits, second, checkpoints=uri), second)
    assert difference(second, undisturbed(digits, 1)) == 0.0


@pytest.fixture
def stop():
    with handling(signal.SIGTERM, partial(end_program, "test")):
        signals = StopSignal()
        yield signals
        signals.restore()


def test_a_signal_that_arrives_twice_is_one_signal(stop):
    """Ctrl-C reaches the processes from the terminal, and again from torchrun, which hands it on."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert stop.received


def test_shards_that_cannot_be_reached_end_the_run_resumably(digits, tmp_path, monkeypatch, capsys):
    """The loaders' error travels between processes as a traceback; the user sees a line."""
    said = "gs://bucket/train-000000.tar: the server could not be reached for 300 s: 503"
    monkeypatch.setattr(ShardReader, "image", Mock(side_effect=storage.UnreachableError(said)))
    with pytest.raises(SystemExit) as stopped:
        train(config(digits, tmp_path / "run", workers=1))
    assert stopped.value.code == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"must train: {said}; run")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; `tick`: what it moves by itself at each look."""
    state = SimpleNamespace(now=0.0, tick=0.0)

    def monotonic():
        state.now += state.tick
        return state.now

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=monotonic))
    return state


def test_one_is_due_after_its_seconds_and_is_asked_for_once(clock):
    timer = RunTimer(TrainProgress(), 60)
    clock.now = 59.9
    assert not timer.due(busy=False)
    clock.now = 60.0
    assert not timer.due(busy=True)  # saving would wait for the one before
    assert timer.due(busy=False) and not timer.due(busy=False)  # on a GPU the answer comes a step later
    timer.save(lambda: None)
    clock.now = 119.9
    assert not timer.due(busy=False)
    clock.now = 120.0
    assert timer.due(busy=False)


def test_saving_that_costs_much_is_done_less_often(clock):
    timer = RunTimer(TrainProgress(), 60)
    timer.save(lambda: vars(clock).update(now=10.0))
    assert timer.progress.saving == 10.0
    clock.now = 10 + 10 * SHARE - 0.1
    assert not timer.due(busy=False)
    clock.now = 10 + 10 * SHARE
    assert timer.due(busy=False)


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


def agreements(signalled, due):
    """What this rank learns after two steps; in the first, `signalled` gets SIGTERM and `due` wants a checkpoint."""
    with handling(signal.SIGTERM, partial(end_program, "test")), init_distributed("cpu", 60) as processes:
        stop = StopSignal()
        if processes.rank == signalled:
            signal.raise_signal(signal.SIGTERM)
        first = stop.agreed(processes, processes.rank == due)
        heard = processes.sum(processes.rank == signalled)
        return [first, stop.agreed(processes), heard]


@pytest.mark.parametrize(
    "signalled, due, first, second",
    [
        (None, None, (False, False), (False, False)),
        (1, None, (True, False), (True, False)),
        (None, 1, (False, True), (False, False)),
        (1, 1, (True, True), (True, False)),
    ],
)
def test_the_main_process_learns_what_another_one_wants(signalled, due, first, second):
    assert on_ranks(2, agreements, signalled, due) == [first, second, signalled is not None]


def test_alone_there_is_nobody_to_ask(stop):
    assert stop.agreed(ALONE, due=True) == (False, True)
    signal.raise_signal(signal.SIGTERM)
    assert stop.agreed(ALONE) == (True, False)


def test_outside_of_a_must_program_signals_are_left_alone():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = StopSignal()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop.restore()
    assert after == before
