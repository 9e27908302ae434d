"""What processes agree on after a step: to leave, and to save."""

import signal

import pytest
import torch

from must.base.exits import ending_on_sigterm
from must.method.distributed.process_group import StopSignal, World, init_distributed
from tests.method.train.processes import on_ranks


def agreements(signalled, due):
    """What this rank learns after two steps; in the first, `signalled` gets SIGTERM and `due` wants a checkpoint."""
    with ending_on_sigterm("test"), init_distributed("cpu", 60) as processes:
        stop = StopSignal()
        try:
            if processes.rank == signalled:
                signal.raise_signal(signal.SIGTERM)
            first = stop.agreed(processes, processes.rank == due)
            heard = processes.sum(processes.rank == signalled)
            return [first, stop.agreed(processes), heard]
        finally:
            stop.restore()


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


def test_alone_there_is_nobody_to_ask():
    with ending_on_sigterm("test"):
        stop = StopSignal()
        try:
            assert stop.agreed(World(0, 1, torch.device("cpu")), due=True) == (False, True)
            signal.raise_signal(signal.SIGTERM)
            assert stop.agreed(World(0, 1, torch.device("cpu"))) == (True, False)
        finally:
            stop.restore()


def test_outside_of_a_must_program_signals_are_left_alone():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = StopSignal()
    try:
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    finally:
        stop.restore()
