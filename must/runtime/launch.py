"""Several training processes under torchrun, from a program that is none of them."""

import signal
import subprocess
import sys
import tempfile
from typing import Any

import yaml

from must.base.exits import BUG, PREEMPTED, handling
from must.base.parameters import require
from must.base.processes import child_environment
from must.method.model.bundle import summary_at
from must.method.model.provenance import RunSummary


def number_of_processes(asked: str) -> int:
    """`asked` is a number, or auto: one a GPU of this machine, one without GPUs. Raises ValueError: it is neither."""
    if asked == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    require(asked.isdigit() and int(asked) >= 1, f"processes '{asked}': a number of 1 or more, or auto")
    return int(asked)


def launch(values: dict[str, Any], processes: int) -> RunSummary:
    """Runs `must train` in `processes` processes; returns the run's summary, from the model that was written.

    A SIGTERM is handed on, so that the processes save a checkpoint before they stop.

    Raises:
        SystemExit: the processes failed, with the code of the one that ended first: 2, the input is wrong (it said
            so in one line); 75, stopped and resumable.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [sys.executable, "-m", "must.method.distributed.torchrun", "--standalone"]
        command.append(f"--nproc-per-node={processes}")
        command += ["-m", "must", "train", "--config", file.name]
        child = subprocess.Popen(command, env=child_environment())
        with handling(signal.SIGTERM, lambda number, _: child.send_signal(number)):
            code = child.wait()
    if code == -signal.SIGTERM:  # it had not even begun
        code = PREEMPTED
    if code:
        raise SystemExit(code if code > 0 else BUG)
    return summary_at(values["output"])
