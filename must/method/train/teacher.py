"""The teacher: an exponential moving average of the student's weights."""

import copy
from typing import TypeVar

import torch
from torch import nn

from must.method.distributed.parallel import to_local

Model = TypeVar("Model", bound=nn.Module)


def make_teacher(student: Model) -> Model:
    """A deep copy of the student, without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay x teacher + (1 - decay) x student, for every parameter (classifier, mask token, decoder too)."""
    average, current = ([to_local(parameter) for parameter in network.parameters()] for network in (teacher, student))
    torch._foreach_lerp_(average, current, 1 - decay)


def ema_decay(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Linear ramp from start to end over warmup_steps, then constant."""
    return start + (end - start) * min(1.0, step / warmup_steps if warmup_steps else 1.0)
