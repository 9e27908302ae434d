"""Signs of life: who is named when a process is killed, frozen or stuck. Real store, real processes."""

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from must.base.processes import is_running
from must.method.distributed.heartbeat import LEFT, Heartbeat

TIMEOUT = 2.0  # seconds of silence; many beats long, so that a busy machine does not silence anybody
BEAT = 0.1


def client(port):
    return dist.PrefixStore("test", dist.TCPStore("localhost", port, is_master=False, timeout=timedelta(seconds=60)))


def heart(port, rank, step):
    """Patient until all three are there, then quick."""
    heartbeat = Heartbeat(client(port), rank, 3, timeout=60, act=False)
    heartbeat.beat, heartbeat.interval, heartbeat.timeout = BEAT, BEAT, TIMEOUT
    heartbeat.begin(step)
    return heartbeat


def beat(port, rank, step):
    _heartbeat = heart(port, rank, step)
    signal.pause()  # until it is killed


@pytest.fixture
def processes():
    """start(rank, step) starts another process of a run of three; (rank 0's heartbeat, the processes by rank)."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    started = {}
    for rank, step in [(1, 7), (2, 6)]:
        started[rank] = multiprocessing.get_context("fork").Process(target=beat, args=(server.port, rank, step))
        started[rank].start()
    heartbeat = heart(server.port, 0, 7)
    yield heartbeat, started
    heartbeat.close()
    for process in started.values():
        process.kill()
        process.join()


def beats(heartbeat):
    """How often each of the others has been heard of."""
    heartbeat.lost()
    return [int(sign.beat) for sign in heartbeat.signs.values()]


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


@pytest.mark.slow
def test_a_frozen_process_is_named_and_one_that_lives_is_not(processes):
    heartbeat, started = processes
    first = beats(heartbeat)
    until(lambda: min(now - then for now, then in zip(beats(heartbeat), first, strict=True)) > 2 * TIMEOUT / BEAT)
    assert heartbeat.lost() == []
    os.kill(started[1].pid, signal.SIGSTOP)
    until(lambda: heartbeat.lost() == [1])
    line = heartbeat.line([1], "is lost")
    assert line.startswith(f"rank 1 (pid {started[1].pid} on ") and "in step 8" in line and "\n" not in line
    os.kill(started[1].pid, signal.SIGCONT)
    until(lambda: heartbeat.lost() == [])


def test_a_killed_process_is_known_at_once(processes):
    heartbeat, started = processes
    started[2].kill()
    started[2].join()
    heartbeat.timeout = 600  # far longer than `until` waits: its silence is not what tells
    assert until(heartbeat.lost) == [2]
    assert heartbeat.explain(TIMEOUT).startswith("rank 2 (pid ")


def test_a_stuck_process_is_the_one_behind(processes):
    heartbeat, _ = processes
    heartbeat.timeout = 600
    assert heartbeat.stuck() == []
    heartbeat.timeout = TIMEOUT
    assert until(heartbeat.stuck) == [2], "it is alive, but has not begun the step that the others wait in"
    heartbeat.begin(8)
    assert heartbeat.stuck() == []


def test_a_process_that_left_on_its_own_is_no_lost_one(processes):
    heartbeat, started = processes
    one = client(heartbeat.store.underlying_store.port)
    started[1].kill()
    started[1].join()
    one.set("1", f"99 {LEFT} {started[1].pid} somewhere")
    until(heartbeat.anyone_left)
    assert heartbeat.lost() == [] and heartbeat.explain(0.1) == LEFT and heartbeat.stuck() == []


def test_a_store_that_is_gone_is_said(processes):
    heartbeat, _ = processes

    class Gone:
        def multi_get(self, keys):
            raise dist.DistNetworkError("Connection reset by peer")

        def set(self, key, value):
            raise dist.DistNetworkError("Connection reset by peer")

    heartbeat.store = Gone()
    assert "common store is gone" in heartbeat.explain(0.1)


def test_a_zombie_does_not_run():
    process = multiprocessing.get_context("fork").Process(target=lambda: None)
    process.start()
    until(lambda: not is_running(process.pid))
    process.join()
    assert not is_running(process.pid) and is_running(os.getpid())
    assert threading.main_thread().is_alive()
