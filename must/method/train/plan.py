"""`must plan`: the cost of `must train` with the same parameters, measured on steps whose result is discarded."""

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from must.base import storage
from must.base.progress import bar
from must.config import PlanConfig
from must.data.loading.loader import TrainBatch
from must.method.distributed.cpu import prepare_machine
from must.method.distributed.process_group import init_distributed
from must.method.train.estimate import Pace, StepTimer, memory_of
from must.method.train.train_state import RunTimer
from must.method.train.trainer import Trainer

logger = logging.getLogger(__name__)

FEW, LONG = 8, 5.0  # images of the first step on a CPU; seconds of a full step above which all steps are as small


def plan(config: PlanConfig) -> dict[str, Any]:
    """The stage: prints the size of a run and its duration on this machine. Writes only the file of ``--json``.

    Shards that are read from a bucket stay in the cache, as with training.

    Raises:
        ValueError: `must train` would refuse the parameters.
    """
    with init_distributed(config.device, config.timeout) as world:
        prepare_machine(world.device)
        trainer = Trainer(config, world)
        trainer.choose()
        size = trainer.size()
        if world.is_main:
            trainer.announce()
            if config.preset:
                chosen = trainer.config.passed - {name for name in config.to_dict() if config.is_passed(name)}
                values = [f"{name} {value}" for name, value in trainer.config.to_dict().items() if name in chosen]
                logger.info(f"--preset {config.preset}: {', '.join(values)}")
        pace = measure_speed(trainer, config.seconds)
        if world.is_main:
            logger.info("\n".join(pace.lines(size, size.steps)))
        seconds = size.steps * pace.mean
        step = asdict(pace) | {"memory": pace.memory._asdict()}
        content = {**asdict(size), "seconds": seconds, "images_per_s": size.batch_size / pace.mean, "step": step}
        if config.json and world.is_main:
            storage.write_bytes(config.json, json.dumps(content, indent=1).encode())
        return content


def measure_speed(trainer: Trainer, seconds: float) -> Pace:
    """Takes steps of the run, with its loaders, for so many seconds. Afterwards the trainer cannot train.

    On a CPU a step of a large model may take minutes; then steps of a few images are measured instead.
    """
    world, config, progress = trainer.world, trainer.config, trainer.state.progress
    local = config.batch_size // world.size
    count = min(FEW, local) if world.device.type == "cpu" else local
    steps, micro_batches = StepTimer(), list[TrainBatch]()
    batches = RunTimer(progress).waiting(endless(trainer.groups(0)))
    for micro_batches in bar(batches, desc="trial steps", unit="step", leave=False, quiet=not world.is_main):
        began = time.monotonic()
        trainer.must_step(progress.step, micro_batches if count == local else first_images(micro_batches, count))
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        progress.step += 1
        steps.mark(progress.waited)
        if count < local and len(steps.marks) == 1:
            too_long = (time.monotonic() - began) * local / count > LONG
            if not world.sum(too_long):  # then the full batch, with its own warm-up
                count, steps = local, StepTimer()
        if world.sum(steps.enough(seconds)):
            break
    began = time.monotonic()
    trainer.monitor.agreement(micro_batches[0])
    reading = (time.monotonic() - began) / config.log_every
    return steps.pace(memory_of(world.device), count * world.size, config.batch_size, reading)


def first_images(micro_batches: list[TrainBatch], count: int) -> list[TrainBatch]:
    first = micro_batches[0]
    weak, strong, masked, samples = (value[:count] for value in first[:4])
    return [TrainBatch(weak, strong, masked, samples, first.replaced)]


def endless(groups: Iterable[list[TrainBatch]]) -> Iterator[list[TrainBatch]]:
    """The groups, then the last one repeatedly: a run may have fewer steps than the measurement needs."""
    last = list[TrainBatch]()
    for last in groups:
        yield last
    yield from itertools.repeat(last)
