"""A run that is killed again and again ends with the weights of one that was left alone."""

import random
import signal

import pytest

from tests.training.lives import STEPS, difference, finish, last_step, live_and_die, log_of, start, undisturbed

KILLS = (signal.SIGKILL, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "processes, seed, hits, most",
    [
        ([1] * 6, 3, 3, 0.0),  # not one bit; of two processes under torchrun: tests/pods/test_kills.py
        ([1, 2, 1, 2], 1, 2, 1e-3),  # relative distance of the weights: sums in another order
    ],
    ids=["one process", "changing numbers of processes"],
)
def test_kills_do_not_change_the_weights(digits, tmp_path, record_property, processes, seed, hits, most):
    """A life of each of these numbers of processes: the last one to its end, the others to a signal."""
    output, chance, happened = tmp_path / "run", random.Random(seed), []
    for number, count in enumerate(processes[:-1]):
        if last_step(output) >= STEPS - 4:  # nearly done: begin again, so that every kill hits a run
            for path in sorted((output / "checkpoints").glob("step-*"))[: -2 if number % 2 else None]:
                path.unlink()
        happened.append(live_and_die(digits, output, count, KILLS[number % 2], chance))
    finish(start(digits, output, processes[-1]), output)
    assert last_step(output) == STEPS, log_of(output)
    print(happened)
    assert sum("while training" in one for one in happened) >= hits
    deviation = difference(output, undisturbed(digits, 1))
    record_property("relative difference of the weights", deviation)
    assert deviation <= most
