"""Whether this machine's CUDA GPUs do what a CPU's do: `pytest tests/gpu`. GPU_TESTS_DEVICE=cpu runs the same
code on the CPU, with two processes where several GPUs are needed."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from must.api.demo import find_assets
from must.config import TrainConfig
from must.config.work import LAST_FILE
from must.model.bundle import LOG_FILE
from must.model.distributed import StopSignal, init_distributed
from must.training.trainer import Trainer
from tests.common import read_csv
from tests.training.lives import difference, training

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
GPUS = torch.cuda.device_count() if ON_GPU else 2
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs a CUDA GPU (torch.cuda.device_count() is 0)")
several = pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA GPUs, this machine has {GPUS}")

# Largest relative differences that pass. Not yet tried on a GPU (benchmarks/README.md).
DEVICES, BF16, PROCESSES = 0.01, 0.03, 0.01  # of losses
WEIGHTS = 1e-3 if ON_GPU else 0.0  # of a resumed run's weights: a GPU's kernels may add in another order
FUSED = ("flash", "fmha", "cudnn") if ON_GPU else ("attention",)  # parts of the names of fused attention kernels
SETTINGS: list[dict] = [{}, {"accumulate": 2}, {"pseudo_labels": "propagated"}]


def config_of(digits, device: str = DEVICE, **changes) -> TrainConfig:
    values = {"batch_size": 32, "workers": 0, "device": device}
    return training(digits, Path("unused"), **values | changes)


@contextmanager
def trainer_of(digits, device: str = DEVICE, **changes):
    with init_distributed(device, 60) as world:
        trainer = Trainer(config_of(digits, device, **changes), world)
        trainer.choose()
        yield trainer


def losses(digits, device: str = DEVICE, steps: int = 8, **changes) -> list[float]:
    with trainer_of(digits, device, **changes) as trainer:
        groups = itertools.islice(trainer.groups(0), steps)
        return [trainer.must_step(step, parts)["loss"].item() for step, parts in enumerate(groups)]


def test_the_steps_are_those_of_a_cpu(digits):
    """Forward and backward pass, optimizer and teacher: the losses of later steps depend on all of them."""
    ours, cpu = losses(digits, precision="fp32"), losses(digits, "cpu", precision="fp32")
    np.testing.assert_allclose(ours[:1], cpu[:1], rtol=DEVICES / 10)
    np.testing.assert_allclose(ours, cpu, rtol=DEVICES)


def test_bf16_follows_float32(digits):
    np.testing.assert_allclose(losses(digits, precision="bf16"), losses(digits, precision="fp32"), rtol=BF16)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_host_waits_for_nothing_in_a_step(settings, digits):
    with trainer_of(digits, workers=1, **settings) as trainer:
        trainer.start_labels(StopSignal())
        groups = trainer.groups(0)
        trainer.must_step(0, next(groups))  # memory and constants are made once
        for step in (1, 2):
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("error")  # torch raises where something waits
            try:
                values = trainer.must_step(step, next(groups))
            finally:
                if ON_GPU:
                    torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(values["loss"].item())


def test_attention_is_one_fused_kernel(digits):
    with trainer_of(digits, precision="bf16" if ON_GPU else "fp32") as trainer:
        groups = trainer.groups(0)
        trainer.must_step(0, next(groups))
        with profile(activities=[ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU]) as recorded:
            trainer.must_step(1, next(groups))["loss"].item()
    names = [event.key.lower() for event in recorded.key_averages()]
    assert [name for name in names if any(word in name for word in FUSED)], names


def command(digits, output: Path, processes: int, **changes) -> list[str]:
    values = {
        "shards": digits.shards, "classifier": digits.classifier, "output": output, "preset": "digits",
        "device": DEVICE, "batch-size": 16 * GPUS, "epochs": 8, "workers": 1, "log-every": 1, "checkpoint-every": 2,
        "precision": "fp32", **changes,
    }  # fmt: skip
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] * (processes > 1)
    return [sys.executable, "-m", *launcher, "must", "train", *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """run(processes, **flags) trains, once for each choice; its folder."""

    @cache
    def train(processes: int, **changes) -> Path:
        output = tmp_path_factory.mktemp("run")
        subprocess.run(command(digits, output, processes, **changes), check=True)
        return output

    return train


@pytest.mark.parametrize("processes", [1, pytest.param(GPUS, marks=several)])
def test_a_killed_run_goes_on_to_the_same_model(processes, digits, run, tmp_path):
    process = subprocess.Popen(command(digits, tmp_path, processes))
    while process.poll() is None and not (tmp_path / "checkpoints" / LAST_FILE).exists():
        time.sleep(0.01)
    with suppress(OSError):  # torchrun puts what it starts into sessions of their own
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before it could be killed"
    subprocess.run(command(digits, tmp_path, processes), check=True)
    assert difference(tmp_path, run(processes)) <= WEIGHTS


def test_every_command_runs_on_the_device(digits, tmp_path):
    work, table, device = tmp_path / "work", tmp_path / "corrections.csv", ["--device", DEVICE]
    photos, classes = digits.images, digits.images.parent / "classes.yaml"
    must = [sys.executable, "-m", "must"]
    adapt = ["adapt", photos, "--classes", classes, "--model", find_assets(), "--output", work, "--train", "no"]
    subprocess.run([*must, *adapt, *device], check=True)
    rows = read_csv(work / "labels/predictions.csv")
    with table.open("w", newline="") as file:
        given = [(row["image"], row["class"] if n % 2 else "none of these") for n, row in enumerate(rows[::5])]
        csv.writer(file).writerows([("image", "class"), *given])
    for command in (
        ["review", work, "--add", table], ["refine", work], ["evaluate", work],
        ["predict", photos, "--model", work / "model"],
    ):  # fmt: skip
        subprocess.run([*must, *command, *device], check=True)


@several
def test_all_gpus_take_the_steps_of_one(run):
    logs = [(folder / LOG_FILE).read_text().splitlines() for folder in (run(GPUS), run(1))]
    ours, one = ([json.loads(line)["loss"] for line in lines] for lines in logs)
    np.testing.assert_allclose(ours[:1], one[:1], rtol=PROCESSES / 10)
    np.testing.assert_allclose(ours, one, rtol=PROCESSES)
