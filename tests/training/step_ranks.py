"""A few steps of MustStep on made batches, in this process or as one rank of several."""

from unittest.mock import patch

import torch
import torch.nn.functional as F

from must.config import TrainConfig
from must.data.image.preprocess import Preprocess
from must.data.loader import TrainBatch
from must.model.distributed import World, init_distributed
from must.model.masked_vit import MaskedViT
from must.training import step as method_step
from must.training.step import MustStep
from tests.golden import golden_batch, golden_model

IMAGES, STEPS = 8, 3
ALONE = World(0, 1, torch.device("cpu"))


def made_batch(step: int, images: range) -> TrainBatch:
    """The images with these numbers of a made global batch for the recorded tiny model: 32 px, 16 patches."""
    generator = torch.Generator().manual_seed(step)
    weak, strong = (torch.randint(0, 256, (IMAGES, 32, 32, 3), generator=generator).byte() for _ in range(2))
    masked = torch.stack([torch.randperm(16, generator=generator)[:5].sort().values for _ in range(IMAGES)])
    chosen = [value[images] for value in (weak, strong, masked, torch.arange(IMAGES))]
    return TrainBatch(*chosen, torch.tensor(images.start == 0).long())  # type: ignore[call-arg]


def recorded_model(classes: int = 0) -> MaskedViT:
    """The recorded tiny model; with `classes`, it has another head, for the branch of many classes."""
    model = golden_model()
    if classes:
        weights = F.normalize(torch.randn(32, classes, generator=torch.Generator().manual_seed(0)), dim=0)
        model.classifier = torch.nn.Parameter(weights)
    return model


def recorded_config(reduction: str = "global") -> TrainConfig:
    """The settings of the recorded steps."""
    weights = {"fairness_weight": 0.2, "reconstruction_weight": 1.0, "align_weight": 0.5}
    schedules = {"batch_size": 8, "lr": 0.032, "ema_decay_init": 0.9, "ema_decay": 0.99, "ema_warmup_steps": 3}
    return TrainConfig(shards="-", classifier="-", output="-", loss_reduction=reduction, **weights, **schedules)


def run_steps(processes: World, state: dict | None = None, steps: range = range(STEPS), **settings) -> dict:
    """Gradients of the first step, values of each, and the state after the last; `state`: what steps before have
    left."""
    student = recorded_model(settings.pop("classes", 0))
    prior = settings.pop("prior", ())
    defaults = {"batch_size": IMAGES, "lr": 0.032, "ema_decay_init": 0.9, "ema_decay": 0.99, "ema_warmup_steps": 3}
    config = TrainConfig(shards="-", classifier="-", output="-", **{**defaults, **settings})
    method = MustStep(student, Preprocess(size=32), config, processes, STEPS, 2, prior)
    if state:
        method.load_state_dict(state)
    gradients, values = {}, []
    share = IMAGES // processes.size
    start, size = processes.rank * share, share // config.accumulate
    for step in steps:
        parts = [made_batch(step, range(n, n + size)) for n in range(start, start + share, size)]
        values.append({name: value.item() for name, value in method(step, parts).items()})
        gradients = gradients or {n: p.grad.clone() for n, p in student.named_parameters()}
    return {"gradients": gradients, "values": values, **method.state_dict()}


def run_steps_on_a_rank(state=None, steps=(STEPS,), **settings):
    """`steps` are the arguments of a range."""
    with init_distributed("cpu", 60) as processes:
        return run_steps(processes, state=state, steps=range(*steps), **settings)


def four_steps(world, part=slice(None), reduction="global", dtype=torch.float32):
    """Trains on the samples `part` of each recorded batch: (first gradients, values of each step, student, teacher)."""
    config, gradients, values = recorded_config(reduction), {}, []
    method = MustStep(golden_model(dtype), Preprocess(size=32), config, world, 4, 2)
    with patch.object(method_step, "normalize", lambda images, _: images):  # recorded images are normalised
        for step in range(4):
            weak, strong, masked = (value[part] for value in golden_batch(step, dtype))
            batch = TrainBatch(weak, strong, masked, torch.arange(len(weak)), torch.tensor(0))
            values.append({name: value.item() for name, value in method(step, [batch]).items()})
            gradients = gradients or {name: p.grad.clone() for name, p in method.student.named_parameters()}
    return gradients, values, method.student, method.teacher


def published_steps_on_a_rank(parts):
    """`parts[rank]` are the samples of this process."""
    with init_distributed("cpu", 60) as processes:
        gradients, values, student, _ = four_steps(processes, parts[processes.rank], "rank")
        return gradients, values, student.state_dict()
