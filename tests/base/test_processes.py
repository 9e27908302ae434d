"""Worker processes: none is left behind, and how many there may be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from must.api.run import run
from must.base import processes
from must.base.processes import count_cores
from tests import zoo
from tests.common import ROOT, until

LEFT_BEHIND = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from must.base.processes import begin_worker

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("{method}"), begin_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_ends_with_the_program_that_was_killed(tmp_path, method):
    (tmp_path / "script.py").write_text(LEFT_BEHIND.format(method=method))
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{done.stdout.split()[0]}").exists())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "800000 100000"}, 8),
        ({"cpu.max": "max 100000"}, 96),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "nonsense"}, 96),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 96),
        ({}, 96),
    ],
)
def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    zoo.put(tmp_path, {name: f"{content}\n".encode() for name, content in files.items()})
    assert count_cores(tmp_path) == expected


@pytest.mark.parametrize(("count", "world", "most"), [(4, "1", 64), (4, "4", 16), (1, "16", 2)])
def test_more_workers_than_the_machine_holds_are_refused_before_any_starts(tmp_path, monkeypatch, count, world, most):
    monkeypatch.setattr(processes, "count_cores", lambda: count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
    processes.check_processes(most, "--workers")
    with pytest.raises(ValueError, match=rf"--workers 1000000: more than the {most} that this machine has the cores"):
        run("shard", source=str(tmp_path), output=str(tmp_path / "out"), workers=1_000_000)


ENDS = """
import threading
from must.base.program import exiting
from must.base.processes import DaemonThreads
with exiting("x"):
    DaemonThreads().submit(threading.Event().wait)
    print("a line", end="")
    raise SystemExit(75)
"""


def test_a_program_ends_beside_a_thread_that_waits():
    environment, command = os.environ | {"PYTHONUNBUFFERED": ""}, [sys.executable, "-c", ENDS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "a line", "")
