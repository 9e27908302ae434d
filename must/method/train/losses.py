"""The four losses of MUST (arXiv 2206.02967, section 3) and how they add up over processes.

The gradient on N processes, averaged as DistributedDataParallel averages it, equals the gradient of one process on
the global batch: the self-training loss is a mean over the confident images of all processes and the class balance is
that of the global batch. This needs one all-reduce of K + 6 numbers."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from must.config import TrainConfig
from must.method.model.masked_vit import StudentOutput, patchify
from must.method.model.towers import take

MANY_CLASSES = 512  # with so many the class balance is a running mean, as one batch cannot contain all classes


class PseudoLabels(NamedTuple):
    label: Tensor  # [B] class number
    confident: Tensor  # [B] bool
    probabilities: Tensor  # [B, K]


class LossSums(NamedTuple):
    """Sums over some images of one process; differentiable."""

    cross_entropy: Tensor  # of the confident images
    confident: Tensor  # number of them
    images: Tensor
    reconstruction: Tensor
    alignment: Tensor
    probability: Tensor  # [K]


class GlobalSums(NamedTuple):
    """What the losses need of the global batch before they can be differentiated; detached."""

    sums: LossSums
    rank_means: Tensor  # of the self-training loss, summed over processes
    local_confident: Tensor  # of this process alone


class Losses(NamedTuple):
    """`total`: the loss that a process differentiates; `values`: those of the global batch, detached."""

    total: Tensor
    values: dict[str, Tensor]
    class_balance: Tensor | None  # [K], the running mean, for the next step of the epoch


def pseudo_labels(probabilities: Tensor, threshold: float) -> PseudoLabels:
    """Hard labels from the teacher's probabilities [B, K]; confident where the largest is above the threshold."""
    score, label = probabilities.max(-1)
    return PseudoLabels(label, score > threshold, probabilities)


def must_losses(
    student: StudentOutput,
    labels: PseudoLabels,
    strong_images: Tensor,
    masked: Tensor,
    config: TrainConfig,
    class_balance: Tensor | None = None,
    totals: GlobalSums | None = None,
    prior: Tensor | None = None,
) -> Losses:
    """All losses of a step, or of one of its micro-batches.

    Args:
        student: of this process's strong images, [B, ...].
        labels: from the teacher on the weak views of the same images.
        strong_images: [B, 3, H, W], normalised; the reconstruction target.
        masked: [B, M] numbers of the masked patches, the same M for every image.
        config: of which it uses the weights of the losses, and loss_reduction.
        class_balance: [K], running, of this epoch's earlier steps (512 classes and more); None or NaN: none yet.
        totals: of the global batch, if these images are only a micro-batch of it: the gradients of all micro-batches
            then add up to the batch's. Without it these images are this process's part of the batch.
        prior: [K], sum 1: the class balance's target; None: uniform."""
    terms = loss_sums(student, labels, strong_images, masked)
    sums, rank_means, local_confident = totals or all_reduce_sums([terms])
    world = dist.get_world_size() if dist.is_initialized() else 1
    if config.loss_reduction == "global":
        self_training = world * terms.cross_entropy / sums.confident.clamp(min=1)
        self_training_value = sums.cross_entropy / sums.confident.clamp(min=1)
    else:  # the mean is taken per process, then over processes, as published
        self_training = terms.cross_entropy / local_confident.clamp(min=1)
        self_training_value = rank_means / world
    # The value is the global batch's; the gradient is that of these images, times `world`, which DDP's mean cancels.
    balance, local = sums.probability / sums.images, world * terms.probability / sums.images
    fairness, running = fairness_loss(local + (balance - local).detach(), class_balance, prior)
    pixels = config.reconstruction_weight * terms.reconstruction + config.align_weight * terms.alignment
    total = self_training + config.fairness_weight * fairness + world * pixels / sums.images

    values = {
        "loss_self_training": self_training_value,
        "loss_fairness": fairness.detach(),
        "loss_reconstruction": sums.reconstruction / sums.images,
        "loss_alignment": sums.alignment / sums.images,
        "confident": sums.confident / sums.images,
    }
    values["loss"] = (
        values["loss_self_training"]
        + config.fairness_weight * values["loss_fairness"]
        + config.reconstruction_weight * values["loss_reconstruction"]
        + config.align_weight * values["loss_alignment"]
    )
    return Losses(total, values, running)


def loss_sums(student: StudentOutput, labels: PseudoLabels, strong_images: Tensor, masked: Tensor) -> LossSums:
    """The sums from which the losses are computed; arguments as in `must_losses`."""
    logits = upcast(student.logits)
    patch = round((student.reconstruction.shape[-1] / 3) ** 0.5)
    target = take(patchify(strong_images, patch), masked)
    count = len(logits)
    return LossSums(
        cross_entropy=(F.cross_entropy(logits, labels.label, reduction="none") * labels.confident).sum(),
        confident=labels.confident.sum().to(logits.dtype),
        images=torch.full((), count, dtype=logits.dtype, device=logits.device),
        reconstruction=count * (upcast(student.reconstruction) - target).abs().mean(),
        alignment=count * upcast(student.alignment).mean(),
        probability=logits.softmax(-1).sum(0),
    )


def all_reduce_sums(parts: list[LossSums]) -> GlobalSums:
    """Sums over this process's micro-batches and over all processes: one all-reduce of K + 6 numbers."""
    local = LossSums(*(torch.stack(values).sum(0).detach() for values in zip(*parts, strict=True)))
    rank_mean = local.cross_entropy / local.confident.clamp(min=1)
    packed = torch.cat([torch.stack([*local[:-1], rank_mean]), local.probability])
    if dist.is_initialized():
        dist.all_reduce(packed)
    values, probability = packed[: len(local)], packed[len(local) :]
    return GlobalSums(LossSums._make([*values[:-1], probability]), values[-1], local.confident)


def fairness_loss(balance: Tensor, running: Tensor | None, prior: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of the mean prediction `balance` [K] from `prior` [K], or the uniform distribution: as published.

    That is KL(prior || balance) up to a constant, so it is smallest where they are equal.

    With 512 classes and more the balance is averaged with that of the epoch's earlier steps (weight 1/2, without
    their gradient) and the loss is doubled, at the epoch's first step too, as published."""
    if len(balance) < MANY_CLASSES:
        return -prior_mean(safe_log(balance), prior), None
    mixed = balance if running is None else torch.where(running.isfinite(), (running + balance) / 2, balance)
    return -2 * prior_mean(safe_log(mixed), prior), mixed.detach()


def prior_mean(x: Tensor, prior: Tensor | None) -> Tensor:
    return x.mean() if prior is None else (prior.to(x.dtype) * x).sum()


def safe_log(x: Tensor) -> Tensor:
    """log, with a floor far below all relevant probabilities: a class without predictions must not give inf."""
    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def upcast(x: Tensor) -> Tensor:
    """Losses are computed in float32 (or float64), whatever the network's precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
