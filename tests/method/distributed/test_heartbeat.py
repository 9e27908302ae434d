"""Heartbeats: who is named when a process is killed or frozen, or the store is gone. Real store, real processes."""

import multiprocessing
import os
import signal
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from must.base.processes import is_running
from must.method.distributed.heartbeat import EXITED, Heartbeat

SILENCE = 2.0  # seconds; many beats long, so that a busy machine does not silence anybody


def heart(port, rank, step):
    """Of a run whose processes end by themselves after ten minutes of silence alone."""
    server = dist.TCPStore("localhost", port, is_master=False, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]
    heartbeat = Heartbeat(dist.PrefixStore("test", server), rank, 3, timeout=600)  # type: ignore[attr-defined]
    heartbeat.interval = 0.1
    heartbeat.begin(step)
    return heartbeat


def beat(port, rank, step):
    _heartbeat = heart(port, rank, step)
    signal.pause()  # until it is killed


@pytest.fixture
def processes():
    """(rank 0's heartbeat, the processes of ranks 1 and 2 by rank)."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    started = {}
    for rank in (1, 2):
        started[rank] = multiprocessing.get_context("fork").Process(target=beat, args=(server.port, rank, 7))
        started[rank].start()
    heartbeat = heart(server.port, 0, 7)
    until(lambda: not heartbeat.lost(SILENCE) and all("step 8" in beat.location() for beat in heartbeat.beats.values()))
    yield heartbeat, started
    heartbeat.close()
    for process in started.values():
        process.kill()
        process.join()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


@pytest.mark.slow
def test_a_frozen_process_is_named_and_one_that_lives_is_not(processes):
    heartbeat, started = processes
    ends = time.monotonic() + 2 * SILENCE
    while time.monotonic() < ends:
        assert heartbeat.lost(SILENCE) == []
        time.sleep(0.1)
    os.kill(started[1].pid, signal.SIGSTOP)
    until(lambda: heartbeat.lost(SILENCE) == [1])
    line = heartbeat.line([1], SILENCE)
    assert line.startswith(f"rank 1 (pid {started[1].pid} on ") and "in step 8" in line and "\n" not in line
    os.kill(started[1].pid, signal.SIGCONT)
    until(lambda: heartbeat.lost(SILENCE) == [])


def test_a_process_that_left_on_its_own_is_no_lost_one(processes):
    heartbeat, started = processes
    started[1].kill()
    started[1].join()
    heartbeat.store.set("1", f"99 {EXITED} {started[1].pid} somewhere")
    heartbeat.timeout = SILENCE
    assert heartbeat.explain() == EXITED and heartbeat.lost(SILENCE) == []


def test_all_are_lost_where_the_store_is_gone(processes):
    heartbeat, _ = processes

    class Gone:
        def multi_get(self, keys):
            raise dist.DistNetworkError("Connection reset by peer")

        def set(self, key, value):
            raise dist.DistNetworkError("Connection reset by peer")

    heartbeat.store, heartbeat.timeout = Gone(), SILENCE
    line = heartbeat.explain()
    assert "rank 1 (" in line and "rank 2 (" in line and "no heartbeat for 2 s" in line


def test_a_zombie_does_not_run():
    process = multiprocessing.get_context("fork").Process(target=lambda: None)
    process.start()
    until(lambda: not is_running(process.pid))
    process.join()
    assert not is_running(process.pid) and is_running(os.getpid())
