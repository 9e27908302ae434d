"""The four losses of MUST (arXiv 2206.02967, section 3) and how they add up over processes.

The gradient on N processes, averaged as DistributedDataParallel averages it, equals the gradient of one process on
the global batch: the self-training loss is a mean over the confident images of all processes and the class balance is
that of the global batch. All that this needs from the other processes is one all-reduce of K + 6 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from must.model.masked_vit import StudentOutput, patchify, take

MANY_CLASSES = 512  # from here on the class balance is a running mean: one batch cannot hold all classes


@dataclass(frozen=True)
class LossWeights:
    fairness: float = 1.0
    reconstruction: float = 1.0
    alignment: float = 0.2


class PseudoLabels(NamedTuple):
    label: Tensor  # [B] class number
    confident: Tensor  # [B] bool


class Losses(NamedTuple):
    """`total` is what a process differentiates; the rest are the global batch's values, detached."""

    total: Tensor
    values: dict[str, Tensor]
    class_balance: Tensor | None  # the running mean to hand to the next step of the epoch


def pseudo_labels(teacher_logits: Tensor, threshold: float) -> PseudoLabels:
    """Hard labels from the teacher's logits [B, K]; confident where the probability is above the threshold."""
    score, label = wide(teacher_logits).softmax(-1).max(-1)
    return PseudoLabels(label, score > threshold)


def must_losses(
    student: StudentOutput,
    labels: PseudoLabels,
    strong_images: Tensor,
    masked: Tensor,
    weights: LossWeights,
    class_balance: Tensor | None = None,
    reduction: str = "global",
    group: dist.ProcessGroup | None = None,
) -> Losses:
    """All losses of a step.

    Args:
        student: of this process's strong images, [B, ...].
        labels: from the teacher on the weak views of the same images.
        strong_images: [B, 3, H, W], normalised; the reconstruction target.
        masked: [B, M] numbers of the masked patches, the same M for every image.
        class_balance: running class balance [K] of this epoch's steps before (512 classes and more), else None.
        reduction: 'global', or 'rank': the self-training mean is taken per process, then over processes (published).
        group: the processes that share the batch; None for the default group, if there is one.
    """
    logits = wide(student.logits)
    patch = round((student.reconstruction.shape[-1] / 3) ** 0.5)
    target = take(patchify(strong_images, patch), masked)
    cross_entropy = (F.cross_entropy(logits, labels.label, reduction="none") * labels.confident).sum()
    reconstruction = (wide(student.reconstruction) - target).abs().mean()
    alignment = wide(student.alignment).mean()
    probability = logits.softmax(-1).sum(0)
    confident = labels.confident.sum().to(logits.dtype)
    count = torch.full((), len(logits), dtype=logits.dtype, device=logits.device)

    world = dist.get_world_size(group) if dist.is_initialized() else 1
    own_mean = cross_entropy / confident.clamp(min=1)
    scalars = torch.stack([cross_entropy, confident, count, reconstruction * count, alignment * count, own_mean])
    totals = torch.cat([scalars, probability]).detach()
    if world > 1:
        dist.all_reduce(totals, group=group)
    ce_sum, confident_sum, count_sum, rec_sum, align_sum, mean_sum = totals[:6]
    balance = totals[6:] / count_sum

    if reduction == "global":
        self_training = world * cross_entropy / confident_sum.clamp(min=1)
        self_training_value = ce_sum / confident_sum.clamp(min=1)
    else:
        self_training, self_training_value = own_mean, mean_sum / world
    # The value is the global mean; the gradient is this process's share of it, times `world` against DDP's averaging.
    local = world * probability / count_sum
    fairness, running = fairness_loss(local + (balance - local).detach(), class_balance)

    share = world * count / count_sum  # 1, unless processes hold batches of different sizes
    total = (
        self_training
        + weights.fairness * fairness
        + share * (weights.reconstruction * reconstruction + weights.alignment * alignment)
    )
    values = {
        "loss_self_training": self_training_value,
        "loss_fairness": fairness.detach(),
        "loss_reconstruction": rec_sum / count_sum,
        "loss_alignment": align_sum / count_sum,
        "confident": confident_sum / count_sum,
    }
    values["loss"] = (
        values["loss_self_training"]
        + weights.fairness * values["loss_fairness"]
        + weights.reconstruction * values["loss_reconstruction"]
        + weights.alignment * values["loss_alignment"]
    )
    return Losses(total, values, running)


def fairness_loss(balance: Tensor, running: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of the mean prediction `balance` [K] from the uniform distribution.

    With 512 classes and more the balance is averaged with that of the epoch's steps before (weight 1/2, no gradient
    into the past) and the loss is doubled, at the epoch's first step too, as published.
    """
    if len(balance) < MANY_CLASSES:
        return -safe_log(balance).mean(), None
    mixed = balance if running is None else (running + balance) / 2
    return -2 * safe_log(mixed).mean(), mixed.detach()


def safe_log(x: Tensor) -> Tensor:
    """log, with a floor far below any probability that matters: a class that no image predicts must not give inf."""
    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def wide(x: Tensor) -> Tensor:
    """Losses are computed in float32 (or float64), whatever the network's precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
