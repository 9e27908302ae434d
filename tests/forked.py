"""Real processes that need not import torch first: forked from one that has, which saves each of them seconds. That one
is made for it (Python's fork server): it imports, and never runs anything."""

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "must.api.cli", "must.training.trainer", "open_clip", "tests.training.step_ranks"
])  # fmt: skip


class Must:
    """`must ARGUMENTS` in a session of its own, with methods of subprocess.Popen; stdout and stderr go to `log`."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        self.log = log
        self.process = CONTEXT.Process(target=run, args=(arguments, str(log), {**os.environ, **environment}))
        self.process.start()
        self.pid: int = self.process.pid
        with suppress(ProcessLookupError):  # it has ended
            while os.getpgid(self.pid) != self.pid:  # nobody can kill the group before it is one
                time.sleep(0.001)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("must", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=True)
    from must.api.cli import main

    main(arguments)
