"""A run that is killed again and again ends with the weights of one that was left alone."""

import random
import signal
from itertools import pairwise

import pytest

from tests.method.train.lives import STEPS, difference, finish, last_step, live_and_die, log_of, start, undisturbed

KILLS = (signal.SIGKILL, signal.SIGTERM)
TOLERANCE = 1e-3  # relative distance of the weights, across numbers of processes: sums in another order
CHANGE = 1e-2  # training moves the weights by more than this


def lives(digits, output, kills, processes, seed):
    """`kills` lives that end in a signal, and one that may end by itself. Prints the log of them."""
    chance = random.Random(seed)
    lines = []
    for number in range(kills):
        if last_step(output) >= STEPS - 4:  # nearly done: begin again, so that every kill hits a run
            for path in sorted((output / "checkpoints").glob("step-*"))[: -2 if number % 2 else None]:
                path.unlink()
        count = processes if isinstance(processes, int) else chance.choice(processes)
        lines.append(live_and_die(digits, output, count, KILLS[number % 2], chance))
        print(f"life {number + 1}: {lines[-1]}", flush=True)
    count = processes if isinstance(processes, int) else chance.choice(processes)
    finish(start(digits, output, count), output)
    print(f"last life: {count} process(es), done", flush=True)
    assert last_step(output) == STEPS, log_of(output)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_change_not_one_bit(digits, tmp_path):
    """Of one process; of two under torchrun: tests/runtime/test_kills.py."""
    output = tmp_path / "run"
    lines = lives(digits, output, kills=10, processes=1, seed=1)
    assert sum("while training" in line for line in lines) >= 5
    assert difference(output, undisturbed(digits, 1)) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_on_changing_numbers_of_processes(digits, tmp_path, record_property):
    output = tmp_path / "run"
    lines = lives(digits, output, 6, (1, 1, 2), seed=15)
    counts = [line.split()[0] for line in lines]
    assert {("1", "2"), ("2", "1")} <= set(pairwise(counts)), "both ways"
    deviation = difference(output, undisturbed(digits, 1))
    record_property("relative difference of the weights", deviation)
    print(f"relative difference of the weights: {deviation:.1e}; 2 undisturbed processes: ", end="")
    print(f"{difference(undisturbed(digits, 2), undisturbed(digits, 1)):.1e}")
    assert deviation < TOLERANCE
