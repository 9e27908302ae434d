"""The four recorded steps, in this process or as one rank of several (`python -m tests.train.ranks` under torchrun)."""

import json
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from must.train.losses import LossWeights, must_losses, pseudo_labels
from must.train.optimizer import build_optimizer, ema_decay, learning_rate, set_learning_rate
from must.train.teacher import make_teacher, update_teacher
from tests.golden import golden_batch, golden_model


def four_steps(part, reduction="global", threshold=0.7, classes=0):
    """Trains on the samples `part` of each recorded batch: (first gradients, values of each step, student, teacher)."""
    student = golden_model()
    if classes:  # another head, for the branch of many classes
        weights = F.normalize(torch.randn(32, classes, generator=torch.Generator().manual_seed(0)), dim=0)
        student.classifier = torch.nn.Parameter(weights)
    teacher = make_teacher(student)
    network = DistributedDataParallel(student) if dist.is_initialized() else student
    optimizer = build_optimizer(student, 0.65, 0.05)
    gradients, values, balance = {}, [], None
    for step in range(4):
        weak, strong, masked = (value[part] for value in golden_batch(step))
        set_learning_rate(optimizer, learning_rate(step, 4, 0.032, 1e-6, 8))
        with torch.no_grad():
            labels = pseudo_labels(teacher(weak), threshold)
        balance = None if step % 2 == 0 else balance
        losses = must_losses(
            network(strong, masked), labels, strong, masked, LossWeights(0.2, 1.0, 0.5), balance, reduction
        )
        balance = losses.class_balance
        optimizer.zero_grad()
        losses.total.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in student.named_parameters()}
        optimizer.step()
        update_teacher(teacher, student, ema_decay(step, 0.9, 0.99, 3))
        values.append({name: value.item() for name, value in losses.values.items()})
    return gradients, values, student.state_dict(), teacher.state_dict()


if __name__ == "__main__":
    output, reduction, threshold, classes, parts = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = four_steps(json.loads(parts)[dist.get_rank()], reduction, float(threshold), int(classes))
    if dist.get_rank() == 0:
        Path(output).write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
