"""A run that is killed again and again ends with the weights of one that was left alone."""

import random
import signal

import pytest

from tests.method.train.lives import STEPS, difference, finish, last_step, live_and_die, log_of, start, undisturbed

KILLS = (signal.SIGKILL, signal.SIGTERM)
TOLERANCE = 1e-3  # relative distance of the weights, across numbers of processes: sums in another order


def lives(digits, output, processes, seed):
    """A life of each of these numbers of processes: the last one to its end, the others to a signal. What happened."""
    chance = random.Random(seed)
    happened = []
    for number, count in enumerate(processes[:-1]):
        if last_step(output) >= STEPS - 4:  # nearly done: begin again, so that every kill hits a run
            for path in sorted((output / "checkpoints").glob("step-*"))[: -2 if number % 2 else None]:
                path.unlink()
        happened.append(live_and_die(digits, output, count, KILLS[number % 2], chance))
    finish(start(digits, output, processes[-1]), output)
    assert last_step(output) == STEPS, log_of(output)
    print(happened)
    return happened


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_change_not_one_bit(digits, tmp_path):
    """Of one process; of two under torchrun: tests/runtime/test_kills.py."""
    output = tmp_path / "run"
    happened = lives(digits, output, processes=[1] * 6, seed=3)
    assert sum("while training" in one for one in happened) >= 3
    assert difference(output, undisturbed(digits, 1)) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_on_changing_numbers_of_processes(digits, tmp_path, below):
    output = tmp_path / "run"
    happened = lives(digits, output, processes=[1, 2, 1, 2], seed=1)
    assert sum("while training" in one for one in happened) >= 2
    below(TOLERANCE, "relative difference of the weights", difference(output, undisturbed(digits, 1)))
