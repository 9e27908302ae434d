"""A run as real processes that are killed: how to start it, find its processes, and let it live several lives."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from must.base.parameters import load
from must.base.processes import is_running
from must.config import TrainConfig
from must.training.checkpoint import Checkpoints, load_state
from tests.common import until
from tests.forked import Must
from tests.once import made_once

SETTINGS = {
    "preset": "digits", "epochs": 12, "batch_size": 50, "workers": 1, "checkpoint_every": 2, "keep_checkpoints": 3,
    "log_every": 4, "seed": 1, "pseudo_labels": "propagated",
}  # fmt: skip
STEPS = 36  # 150 images, 3 batches an epoch
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def training(digits: Any, output: Path, **settings: Any) -> TrainConfig:
    """Of a run on the digits; without settings, as their preset has them."""
    places = {"shards": digits.shards, "classifier": digits.classifier, "output": str(output)}
    return load(TrainConfig, {**places, "preset": "digits", **settings})


def newest_state(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """What a run would go on from."""
    with checkpoints.newest() as path:
        return load_state(path) if path else None


def command(digits: Any, output: Path, processes: int = 1, torchrun: tuple = (), **changes: Any) -> list[str]:
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": output, **SETTINGS, **changes}
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    launcher = ["-m", "must.model.distributed", "--standalone", f"--nproc-per-node={processes}", *torchrun]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "must", "train", *flags]


def start(digits: Any, output: Path, processes: int = 1, more: tuple = (), **changes: Any) -> subprocess.Popen | Must:
    """In a session of its own; stdout and stderr go to OUTPUT.log, one life after the other."""
    if processes == 1:
        return Must(command(digits, output, **changes)[3:], output.with_suffix(".log"), **ENVIRONMENT)
    words = command(digits, output, processes, more, **changes)
    with output.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True)


def log_of(output: Path) -> str:
    return output.with_suffix(".log").read_text()


def finish(process: subprocess.Popen | Must, output: Path, seconds: float = 120) -> None:
    assert process.wait(timeout=seconds) == 0, log_of(output)


def undisturbed(digits: Any, processes: int) -> Path:
    """The folder of a run of so many processes that nobody disturbed, made once for all tests. Only read it."""

    def make(folder: Path) -> None:
        finish(start(digits, folder / "run", processes), folder / "run")

    return made_once(f"undisturbed-{processes}", make) / "run"


def ranks(process: subprocess.Popen) -> dict[int, int]:
    """Process numbers of a torchrun's ranks that are alive."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, StopIteration):  # it has ended, or is none of the ranks
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_text().split("\0") if parent == process.pid else []
            found[int(next(one for one in variables if one.startswith("RANK="))[5:])] = int(folder.name)
    return found


def until_gone(pids: Iterable[int]) -> None:
    """torchrun's processes are in sessions of their own, and end with it nevertheless."""
    pids = [*pids]
    until(lambda: not any(map(is_running, pids)))


def last_step(output: Path) -> int:
    """Of the newest whole checkpoint; 0 without one."""
    return max((int(path.stem[5:]) for path in (output / "checkpoints").glob("step-*.json")), default=0)


def wait_for_step(process: subprocess.Popen | Must, output: Path, step: int) -> None:
    until(lambda: last_step(output) >= step, lambda: f"{process.poll()}:\n{log_of(output)}", process=process)


def live_and_die(digits: Any, output: Path, processes: int, number: int, chance: random.Random) -> str:
    """One life: starts or goes on, and gets a signal at a random moment; returns what happened when. Most moments lie
    in training, which is a second of a life of many; every fifth one lies in the start."""
    before = last_step(output)
    process = start(digits, output, processes)
    importing = 1 if processes > 1 else 0.25  # one process has done that already
    where, moment = "training", chance.uniform(0, 0.4)
    if chance.random() < 0.2:
        where, moment = "starting", chance.uniform(0.05, 4.0) * importing
    else:
        wait_for_step(process, output, min(before + 2, STEPS))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment)
    alive = process.poll() is None
    if alive and number == signal.SIGKILL:
        children = ranks(process).values()
        os.killpg(process.pid, signal.SIGKILL)  # everything at once: the machine is lost
        until_gone(children)
    elif alive:
        process.send_signal(number)
    code = process.wait(timeout=120)
    assert code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), f"{code}:\n{log_of(output)}"
    return f"{signal.Signals(number).name} while {where}" if alive else "had ended before"


def weights(folder: Path | str, *prefixes: str) -> dict[str, torch.Tensor]:
    """A bundle's weights, without its memory; with `prefixes`, those whose names begin with one."""
    values = load_file(f"{folder}/model.safetensors")
    chosen = prefixes or tuple(name for name in values if not name.startswith("memory."))
    return {name: value for name, value in values.items() if name.startswith(chosen)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def difference(folder: Path, other: Path) -> float:
    """Relative distance of two runs' final weights, over all tensors; 0.0 only for the same bits."""
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, other))
    assert ours.keys() == theirs.keys()
    if same(ours, theirs):
        return 0.0
    distance = sum((ours[name].double() - theirs[name].double()).square().sum().item() for name in ours)
    return math.sqrt(distance / sum(value.double().square().sum().item() for value in theirs.values()))
