"""Checks of whole runs: `must train` as a user starts it, killed, and on several GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from must.api.verify.single import CheckFailedError, Found, Setting, demand
from must.base.files import LAST_FILE, WEIGHTS_FILE
from must.method.model.bundle import LOG_FILE

STEPS = 8
SAME = 1e-3  # relative distance of two models' weights on a GPU, whose kernels may add up in another order
LOSSES_APART = 0.01


def command(setting: Setting, output: Path, processes: int = 1, **changes: object) -> list[str]:
    batch = 16 * max(2, setting.gpus)
    values = {
        **setting.data, "output": output, "preset": "digits", "device": setting.device, "batch-size": batch,
        "epochs": 8, "workers": 1, "log-every": 1, "checkpoint-every": 2, "select": "none", "trackers": "",
        "precision": "fp32", **changes,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in values.items()]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] * (processes > 1)
    return [sys.executable, "-m", *launcher, "must", "train", *flags]


def train(setting: Setting, name: str, processes: int = 1, **changes: object) -> list[float]:
    """The losses of a run, a step each."""
    output = setting.folder / name
    if not (output / WEIGHTS_FILE).exists():
        result = subprocess.run(command(setting, output, processes, **changes), env=environment(setting))
        if result.returncode:
            raise CheckFailedError(f"`must train` ended with code {result.returncode}")
    return [json.loads(line)["loss"] for line in (output / LOG_FILE).read_text().splitlines()]


def environment(setting: Setting) -> dict[str, str]:
    return {**os.environ, **({"OMP_NUM_THREADS": "1"} if setting.tiny else {})}


def resume(setting: Setting, processes: str = "one") -> Found:
    """Killed with -9 once there is a checkpoint, then started again with the same command. `processes`: one, or all."""
    count = setting.gpus if processes == "all" else 1
    undisturbed, killed = ("whole", "killed") if count == 1 else ("together", "killed-together")
    train(setting, undisturbed, count)
    output = setting.folder / killed
    process = subprocess.Popen(command(setting, output, count), env=environment(setting))
    while process.poll() is None and not (output / "checkpoints" / LAST_FILE).exists():
        time.sleep(0.01)
    kill(process)
    in_time = process.wait() == -signal.SIGKILL
    train(setting, killed, count)
    ours, theirs = (load_file(setting.folder / name / WEIGHTS_FILE) for name in (killed, undisturbed))
    equal = all(torch.equal(ours[name], value) for name, value in theirs.items())
    difference = distance(ours, theirs)
    detail = "equal to the bit" if equal else f"relative distance of the weights {difference:.1e}"
    good = equal if setting.device == "cpu" else difference < SAME
    return demand(good, detail if in_time else f"{detail}; it had ended before it could be killed", distance=difference)


def kill(process: subprocess.Popen) -> None:
    """The process and those that it has started, which torchrun puts into sessions of their own."""
    with suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    squares = [
        ((ours[name] - value).double().square().sum(), value.double().square().sum()) for name, value in theirs.items()
    ]
    return (sum(a.item() for a, _ in squares) / sum(b.item() for _, b in squares)) ** 0.5


def all_gpus(setting: Setting) -> Found:
    return same_losses(train(setting, "together", setting.gpus), train(setting, "whole"), f"{setting.gpus} processes")


def fsdp(setting: Setting) -> Found:
    cut = train(setting, "cut", setting.gpus, parallel="fsdp")
    return same_losses(cut, train(setting, "together", setting.gpus), f"{setting.gpus} processes")


def same_losses(ours: list[float], theirs: list[float], where: str) -> Found:
    from must.api.verify.steps import apart

    first, whole = apart(ours[:1], theirs[:1]), apart(ours, theirs)
    detail = f"{where}: losses differ by {first:.1e} in the first step, {whole:.1e} at most in {len(ours)}"
    return demand(first < LOSSES_APART / 10 and whole < LOSSES_APART, detail, ours=ours, theirs=theirs)
