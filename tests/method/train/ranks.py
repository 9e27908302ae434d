"""The four recorded steps, in this process or as one rank of several."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from must.method.train.losses import must_losses, pseudo_labels
from must.method.train.recipe import Objective
from must.method.train.step import (
    build_optimizer,
    ema_decay,
    learning_rate,
    make_teacher,
    set_learning_rate,
    update_teacher,
)
from tests.golden import golden_batch
from tests.method.train.step_ranks import recorded_model

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
        objective = Objective(0.2, 1.0, 0.5, reduction, THRESHOLD)
        losses = must_losses(network(strong, masked), labels, strong, masked, objective, balance)
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
