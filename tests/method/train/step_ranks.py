"""A few steps of MustStep on made batches, in this process or as one rank of several."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from must.config import TrainConfig
from must.data.image.preprocess import Preprocess
from must.data.loading.loader import TrainBatch
from must.method.distributed.parallel import full_state_dict
from must.method.distributed.process_group import World, init_distributed
from must.method.model.masked_vit import MaskedViT
from must.method.train import step as method_step
from must.method.train.losses import must_losses, pseudo_labels
from must.method.train.step import (
    MustStep,
    build_optimizer,
    compile_blocks,
    ema_decay,
    learning_rate,
    make_teacher,
    set_learning_rate,
    update_teacher,
)
from tests.golden import golden_batch, golden_model

IMAGES, STEPS = 8, 3


def made_batch(step: int, images: range) -> TrainBatch:
    """The images with these numbers of a made global batch for the recorded tiny model: 32 px, 16 patches."""
    generator = torch.Generator().manual_seed(step)
    weak, strong = (torch.randint(0, 256, (IMAGES, 32, 32, 3), generator=generator).byte() for _ in range(2))
    masked = torch.stack([torch.randperm(16, generator=generator)[:5].sort().values for _ in range(IMAGES)])
    numbers = torch.arange(IMAGES)
    chosen = [value[images] for value in (weak, strong, masked, numbers)]
    return TrainBatch(*chosen, torch.tensor(images.start == 0).long())  # type: ignore[call-arg]


def recorded_model(classes: int = 0, dtype: torch.dtype = torch.float32) -> MaskedViT:
    """The recorded tiny model; with `classes`, it has another head, for the branch of many classes."""
    model = golden_model(dtype)
    if classes:
        weights = F.normalize(torch.randn(32, classes, generator=torch.Generator().manual_seed(0)), dim=0)
        model.classifier = torch.nn.Parameter(weights)
    return model


def recorded_config(reduction: str = "global") -> TrainConfig:
    """The weights of the losses in the recorded steps."""
    weights = {"fairness_weight": 0.2, "reconstruction_weight": 1.0, "align_weight": 0.5}
    return TrainConfig(shards="-", classifier="-", output="-", loss_reduction=reduction, **weights)


def run_steps(processes: World, state: dict | None = None, steps: range = range(STEPS), **settings) -> dict:
    """Gradients of the first step, values of each, and the state after the last.

    `state` is what the steps before left behind.
    """
    student = recorded_model(settings.pop("classes", 0))
    prior, backend = settings.pop("prior", ()), settings.pop("backend", "inductor")
    defaults = {"batch_size": IMAGES, "lr": 0.032, "ema_decay_init": 0.9, "ema_decay": 0.99, "ema_warmup_steps": 3}
    config = TrainConfig(shards="-", classifier="-", output="-", **{**defaults, **settings})
    method = MustStep(student, Preprocess(size=32), config, processes, STEPS, 2, prior)
    method_step.BACKEND = backend
    if config.compile:
        compile_blocks(method, 5, IMAGES // processes.size // config.accumulate)
    if state:
        method.load_state_dict(state)
    gradients, values = {}, []
    share = IMAGES // processes.size
    start, size = processes.rank * share, share // config.accumulate
    for step in steps:
        parts = [made_batch(step, range(n, n + size)) for n in range(start, start + share, size)]
        values.append({name: value.item() for name, value in method(step, parts).items()})
        gradients = gradients or {n: full_state_dict(p.grad, True).clone() for n, p in student.named_parameters()}
    return {"gradients": gradients, "values": values, **method.state_dict()}


def run_steps_on_a_rank(state=None, steps=(STEPS,), **settings):
    """`steps` are the arguments of a range."""
    with init_distributed("cpu", 60) as processes:
        return run_steps(processes, state=state, steps=range(*steps), **settings)


THRESHOLD = 0.7


def four_steps(part=slice(None), reduction="global", classes=0, dtype=torch.float32):
    """Trains on the samples `part` of each recorded batch: (first gradients, values of each step, student, teacher)."""
    student = recorded_model(classes, dtype)
    teacher = make_teacher(student)
    network = DistributedDataParallel(student) if dist.is_initialized() else student
    optimizer = build_optimizer(student, 0.65, 0.05)
    gradients, values, balance = {}, [], None
    for step in range(4):
        weak, strong, masked = (value[part] for value in golden_batch(step, dtype))
        set_learning_rate(optimizer, learning_rate(step, 4, 0.032, 1e-6, 8))
        with torch.no_grad():
            labels = pseudo_labels(teacher(weak).softmax(-1), THRESHOLD)
        balance = None if step % 2 == 0 else balance
        losses = must_losses(network(strong, masked), labels, strong, masked, recorded_config(reduction), balance)
        balance = losses.class_balance
        optimizer.zero_grad()
        losses.total.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in student.named_parameters()}
        optimizer.step()
        update_teacher(teacher, student, ema_decay(step, 0.9, 0.99, 3))
        values.append({name: value.item() for name, value in losses.values.items()})
    return gradients, values, student, teacher


def states_after_four_steps(*arguments):
    gradients, values, student, teacher = four_steps(*arguments)
    return gradients, values, student.state_dict(), teacher.state_dict()


def four_steps_on_a_rank(parts, reduction, classes):
    """`parts[rank]` are the samples of this process."""
    dist.init_process_group("gloo")
    try:
        return states_after_four_steps(parts[dist.get_rank()], reduction, classes)
    finally:
        dist.destroy_process_group()
