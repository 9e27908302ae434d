"""`must plan`: the cost of `must train` with its parameters, measured on steps whose result is discarded."""

import itertools
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from must.base import storage
from must.base.program import show_bar
from must.base.text import format_duration
from must.config import PlanConfig
from must.data.loader import TrainBatch
from must.model.distributed import init_distributed, prepare_machine
from must.training.checkpoint import RunTimer
from must.training.log import GB
from must.training.trainer import Trainer

logger = logging.getLogger(__name__)

FEW, LONG = 8, 5.0  # images of the first step on a CPU; seconds of a full step above which all steps are as small
MEASURED = 20.0  # seconds of steps
FEWEST_TIMED = 3  # steps, after one that is not timed: memory is allocated, kernels are chosen, loaders start


@dataclass(frozen=True)
class Pace:
    """The measured speed. Times are seconds per step of the full batch."""

    mean: float
    least: float
    most: float
    measured: int  # steps
    images: int  # of each step, over all processes
    waiting: float  # share of the time
    memory: int  # bytes
    device_memory: int


def plan(config: PlanConfig) -> dict[str, Any]:
    """The stage: prints the size of a run and its duration on this machine. Writes only the file of ``--json``.

    Shards that are read from a bucket stay in the cache, as with training."""
    with init_distributed(config.device, config.timeout) as world:
        prepare_machine(world.device)
        trainer = Trainer(config.of_training(), world)
        trainer.choose()
        size = trainer.size()
        if world.is_main:
            trainer.announce()
            for line in trainer.resolved.lines():
                logger.info(line)
        pass_seconds = measure_pass(trainer)
        pace = measure_speed(trainer)
        seconds, images_per_s = size.steps * pace.mean, size.batch_size / pace.mean
        if world.is_main:
            logger.info(
                f"{format_duration(pass_seconds)} for one pass over the images, which gives the model its memory and "
                "the images their labels (must refine)"
            )
            part = f" with {pace.images} of its images" if pace.images < size.batch_size else ""
            logger.info(
                f"{format_duration(seconds)} for {size.steps:,} steps on this machine: {pace.mean:.3g} s a step "
                f"({pace.least:.3g} to {pace.most:.3g}), {images_per_s:.3g} images/s, {pace.waiting:.0%} of it waiting "
                f"for data; memory: {pace.memory / GB:.2g} of {pace.device_memory / GB:.3g} GB; measured on "
                f"{pace.measured} steps{part}, after one to warm up"
            )
        content = {
            **asdict(size),
            "seconds": seconds,
            "pass_seconds": pass_seconds,
            "images_per_s": images_per_s,
            "step": asdict(pace),
        }
        if config.json and world.is_main:
            storage.write_bytes(config.json, json.dumps(content, indent=1).encode())
        return content


@torch.inference_mode()
def measure_pass(trainer: Trainer) -> float:
    """Seconds of one forward pass over all images of the split, in this process; loading them is not included."""
    size, device = trainer.must_step.preprocess.size, trainer.world.device
    images = torch.zeros(FEW, 3, size, size, device=device)
    times = []
    for _ in range(3):  # the first one allocates
        began = time.monotonic()
        trainer.reference.classify(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - began)
    return min(times) / FEW * len(trainer.reader)


def measure_speed(trainer: Trainer) -> Pace:
    """Takes steps of the run, with its loaders, for MEASURED seconds. Afterwards the trainer cannot train.

    On a CPU a step of a large model may take minutes; then steps of a few images are measured instead."""
    world, config, progress = trainer.world, trainer.config, trainer.state.progress
    local = config.batch_size // world.size
    count = min(FEW, trainer.micro_batch) if world.device.type == "cpu" else local
    ends, waited, micro_batches = list[float](), list[float](), list[TrainBatch]()  # after each step
    batches = RunTimer(progress).waiting(repeat_last(trainer.groups(0)))
    for micro_batches in show_bar(batches, desc="trial steps", unit="step", leave=False, quiet=not world.is_main):
        began = time.monotonic()
        trainer.must_step(progress.step, micro_batches if count == local else take_first(micro_batches, count))
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        progress.step += 1
        ends.append(time.monotonic())
        waited.append(progress.waited)
        if count < local and len(ends) == 1:
            too_long = (ends[0] - began) * local / count > LONG
            if not world.sum(too_long):  # then the full batch, with its own warm-up
                count, ends, waited = local, [], []
        if world.sum(len(ends) > FEWEST_TIMED and ends[-1] - ends[0] >= MEASURED):
            break
    began = time.monotonic()
    trainer.must_step.agreement(trainer.reference, micro_batches[0])
    reading = (time.monotonic() - began) / config.log_every
    times = [(after - before) * local / count + reading for before, after in itertools.pairwise(ends)]
    share = (waited[-1] - waited[0]) / (ends[-1] - ends[0])
    mean = sum(times) / len(times)
    return Pace(mean, min(times), max(times), len(times), count * world.size, share, *measure_memory(world.device))


def take_first(micro_batches: list[TrainBatch], count: int) -> list[TrainBatch]:
    first = micro_batches[0]
    weak, strong, masked, samples = (value[:count] for value in first[:4])
    return [TrainBatch(weak, strong, masked, samples, first.replaced)]


def repeat_last(groups: Iterable[list[TrainBatch]]) -> Iterator[list[TrainBatch]]:
    """The groups, then the last one repeatedly: a run may have fewer steps than the measurement needs."""
    last = list[TrainBatch]()
    for last in groups:
        yield last
    yield from itertools.repeat(last)


def measure_memory(device: torch.device) -> tuple[int, int]:
    """(bytes, bytes of the device): the peak memory of this process on its GPU, or on a CPU without its loaders."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return used, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
