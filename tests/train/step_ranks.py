"""A few steps of MustStep on made batches, in this process or as one rank of several (run as a module by torchrun)."""

import json
import pickle
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from must.config import TrainConfig
from must.data.eval_view import Preprocess
from must.data.stream import TrainBatch
from must.train.distributed import World, world
from must.train.step import MustStep
from tests.golden import golden_model

IMAGES, STEPS = 8, 3


def made_batch(step: int, images: range) -> TrainBatch:
    """The images with these numbers of a made global batch for the recorded tiny model: 32 px, 16 patches."""
    generator = torch.Generator().manual_seed(step)
    weak, strong = (torch.randint(0, 256, (IMAGES, 32, 32, 3), generator=generator).byte() for _ in range(2))
    masked = torch.stack([torch.randperm(16, generator=generator)[:5].sort().values for _ in range(IMAGES)])
    numbers = torch.arange(IMAGES)
    return TrainBatch(
        *(value[images] for value in (weak, strong, masked, numbers)), torch.tensor(images.start == 0).long()
    )


def run_steps(processes: World, first: int = 0, images: int = IMAGES, **settings) -> dict:
    """Gradients of the first step, values of each, and both networks after the last, of `STEPS` steps.

    The batch is `images` images from number `first` on.
    """
    classes, stop_at = settings.pop("classes", 0), settings.pop("stop_at", None)
    student = golden_model()
    if classes:  # another head, for the branch of many classes
        weights = F.normalize(torch.randn(32, classes, generator=torch.Generator().manual_seed(0)), dim=0)
        student.classifier = torch.nn.Parameter(weights)
    defaults = {"batch_size": IMAGES, "lr": 0.032, "ema_decay_init": 0.9, "ema_decay": 0.99, "ema_warmup_steps": 3}
    config = TrainConfig(shards="-", classifier="-", output="-", **{**defaults, **settings})
    method = MustStep(student, Preprocess(size=32), config, processes, STEPS, 2)
    gradients, values = {}, []
    share = images // processes.size
    start, size = first + processes.rank * share, share // config.accumulate
    for step in range(STEPS):
        parts = [made_batch(step, range(n, n + size)) for n in range(start, start + share, size)]
        stop = (step, processes.rank) == (stop_at, processes.size - 1)
        values.append({name: value.item() for name, value in method(step, parts, stop).items()})
        gradients = gradients or {name: p.grad.clone() for name, p in student.named_parameters()}
    state = method.state_dict()
    return {"gradients": gradients, "values": values, "student": state["student"], "teacher": state["teacher"]}


if __name__ == "__main__":
    output, settings = sys.argv[1:]
    torch.set_num_threads(1)
    with world("cpu", 60) as processes:
        result = run_steps(processes, **json.loads(settings))
        if processes.is_main:
            Path(output).write_bytes(pickle.dumps(result))
