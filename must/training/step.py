"""One step of the method (arXiv 2206.02967, section 3): teacher, student, the four losses, AdamW with layer-wise
learning rates, and the teacher's moving average. Learning rates, decays and their schedules are as published.

The gradient on N processes, averaged as DistributedDataParallel averages it, equals the gradient of one process on
the global batch: the self-training loss is a mean over the confident images of all processes and the class balance is
that of the global batch. This needs one all-reduce of K + L + 4 numbers, L the rows of IMAGE_LOSSES."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from must.config import TrainConfig
from must.data.augment import normalize
from must.data.image.preprocess import Preprocess
from must.data.loader import TrainBatch
from must.memory.propagate import PropagatedLabels
from must.model.distributed import World, apply_ddp, choose_precision, gradient_sync
from must.model.masked_vit import MaskedViT, StudentOutput, patchify
from must.model.towers import take

MANY_CLASSES = 512  # with so many the class balance is a running mean, as one batch cannot contain all classes


class PseudoLabels(NamedTuple):
    label: Tensor  # [B] class number
    confident: Tensor  # [B] bool
    probabilities: Tensor  # [B, K]


class ImageLoss(NamedTuple):
    """A loss that is a mean over images. From its row come its part of the total, `loss_NAME` in the log, the sum over
    processes and, for the first three, a curve in the report."""

    name: str
    weight: str  # a parameter of `must train`
    mean: Callable[[StudentOutput, Tensor], Tensor]  # of the output and the masked patches' pixels [B, M, D]; scalar


IMAGE_LOSSES = (
    ImageLoss(
        "reconstruction", "reconstruction_weight", lambda it, pixels: (upcast(it.reconstruction) - pixels).abs().mean()
    ),
    ImageLoss("alignment", "align_weight", lambda it, _: upcast(it.alignment).mean()),
)


class LossSums(NamedTuple):
    """Sums over some images of one process; differentiable."""

    cross_entropy: Tensor  # of the confident images
    confident: Tensor  # number of them
    images: Tensor
    image_losses: Tensor  # [L]
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


def make_pseudo_labels(probabilities: Tensor, threshold: float) -> PseudoLabels:
    """Hard labels from the teacher's probabilities [B, K]; confident where the largest is above the threshold."""
    score, label = probabilities.max(-1)
    return PseudoLabels(label, score > threshold, probabilities)


def compute_losses(
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
    terms = sum_losses(student, labels, strong_images, masked)
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
    fairness, running = compute_fairness_loss(local + (balance - local).detach(), class_balance, prior)
    weights = [getattr(config, loss.weight) for loss in IMAGE_LOSSES]
    of_images = sum(weight * loss for weight, loss in zip(weights, terms.image_losses, strict=True))
    total = self_training + config.fairness_weight * fairness + world * of_images / sums.images

    values = {"loss_self_training": self_training_value, "loss_fairness": fairness.detach()}
    values["loss"] = values["loss_self_training"] + config.fairness_weight * values["loss_fairness"]
    for loss, weight, value in zip(IMAGE_LOSSES, weights, sums.image_losses / sums.images, strict=True):
        values[f"loss_{loss.name}"] = value
        values["loss"] = values["loss"] + weight * value
    return Losses(total, values | {"confident": sums.confident / sums.images}, running)


def sum_losses(student: StudentOutput, labels: PseudoLabels, strong_images: Tensor, masked: Tensor) -> LossSums:
    """The sums from which the losses are computed; arguments as in `compute_losses`."""
    logits = upcast(student.logits)
    patch = round((student.reconstruction.shape[-1] / 3) ** 0.5)
    pixels = take(patchify(strong_images, patch), masked)
    count = len(logits)
    return LossSums(
        cross_entropy=(F.cross_entropy(logits, labels.label, reduction="none") * labels.confident).sum(),
        confident=labels.confident.sum().to(logits.dtype),
        images=torch.full((), count, dtype=logits.dtype, device=logits.device),
        image_losses=torch.stack([count * loss.mean(student, pixels) for loss in IMAGE_LOSSES]),
        probability=logits.softmax(-1).sum(0),
    )


def all_reduce_sums(parts: list[LossSums]) -> GlobalSums:
    """Sums over this process's micro-batches and over all processes: one all-reduce of K + L + 4 numbers."""
    local = LossSums(*(torch.stack(values).sum(0).detach() for values in zip(*parts, strict=True)))
    rank_mean = local.cross_entropy / local.confident.clamp(min=1)
    packed = torch.cat([value.reshape(-1) for value in (*local, rank_mean)])
    if dist.is_initialized():
        dist.all_reduce(packed)
    *summed, rank_means = packed.split([value.numel() for value in (*local, rank_mean)])
    sums = LossSums._make(value.reshape(one.shape) for value, one in zip(summed, local, strict=True))
    return GlobalSums(sums, rank_means[0], local.confident)


def compute_fairness_loss(
    balance: Tensor, running: Tensor | None, prior: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of the mean prediction `balance` [K] from `prior` [K], or the uniform distribution: as published.

    That is KL(prior || balance) up to a constant, so it is smallest where they are equal.

    With 512 classes and more the balance is averaged with that of the epoch's earlier steps (weight 1/2, without
    their gradient) and the loss is doubled, at the epoch's first step too, as published."""
    many = len(balance) >= MANY_CLASSES
    if many and running is not None:
        balance = torch.where(running.isfinite(), (running + balance) / 2, balance)
    # The floor is far below all relevant probabilities: a class without predictions must not give inf.
    log = balance.clamp(min=torch.finfo(balance.dtype).tiny).log()
    loss = -(log.mean() if prior is None else (prior.to(log.dtype) * log).sum())
    return (2 * loss, balance.detach()) if many else (loss, None)


def upcast(x: Tensor) -> Tensor:
    """Losses are computed in float32 (or float64), whatever the network's precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


BETAS, EPS = (0.9, 0.999), 1e-8


class MustStep:
    """Student, teacher and optimizer; a call is one training step.

    Args:
        student: the zero-shot model, on its device; it is trained in place.
        config: of which it uses the settings of losses, optimizer, teacher and arithmetic.
        steps, steps_per_epoch: of the whole run, for the schedules.
        prior: [K], sum 1, the class balance's target; empty: uniform."""

    def __init__(
        self,
        student: MaskedViT,
        preprocess: Preprocess,
        config: TrainConfig,
        world: World,
        steps: int,
        steps_per_epoch: int,
        prior: Sequence[float] = (),
    ) -> None:
        self.student, self.preprocess, self.config, self.world = student, preprocess, config, world
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.threshold = config.confidence_threshold  # of the teacher's probability; see --confident-share
        self.teacher = make_teacher(student)
        # About the floating point operations to train on an image: those of four forward passes (teacher 1, student 3).
        patches = (preprocess.size // student.patch_size) ** 2
        self.work = 4.0 * 2 * patches * sum(parameter.numel() for parameter in student.parameters())
        self.precision = choose_precision(world.device, self.work) if config.precision == "auto" else config.precision
        student.tower.checkpointing = config.activation_checkpointing
        self.optimizer = build_optimizer(student, config.layer_decay, config.weight_decay)
        self.prior = torch.tensor(prior, dtype=torch.float64).float().to(world.device) if prior else None
        self.class_balance: Tensor | None = None  # of the epoch's earlier steps, with many classes
        self.propagated: PropagatedLabels | None = None  # with --pseudo-labels propagated
        self.network = apply_ddp(student, world)

    def __call__(self, step: int, micro_batches: Sequence[TrainBatch]) -> dict[str, Tensor]:
        """Trains on this process's part of global batch `step`, cut into one or more micro-batches of equal size.
        Returns values of the global batch, on the device: the host does not wait for them. And 'replaced', the number
        of undecodable samples of this process."""
        set_learning_rate(self.optimizer, self.learning_rate(step))
        if step % self.steps_per_epoch == 0:
            self.class_balance = None
        batches = [batch.to(self.world.device) for batch in micro_batches]
        losses, labels = self.differentiate(batches)
        if self.propagated is not None:
            samples, probabilities = [batch.samples for batch in batches], [label.probabilities for label in labels]
            self.propagated.update(samples, probabilities, self.world)
        finite = step_if_finite(self.optimizer)
        update_teacher(self.teacher, self.student, self.ema_decay(step))
        self.class_balance = update_balance(self.class_balance, losses.class_balance, finite)
        replaced = torch.stack([batch.replaced for batch in batches]).sum().float()
        return {**losses.values, "skipped": (~finite).float(), "replaced": replaced}

    def differentiate(self, batches: list[TrainBatch]) -> tuple[Losses, list[PseudoLabels]]:
        """Sets only the student's gradients; the micro-batches are on the device. Returns the last one's losses,
        whose values are those of the global batch, and the pseudo-labels of each micro-batch."""
        labels = [self.pseudo_labels(batch) for batch in batches]
        totals = None if len(batches) == 1 else self.totals(batches, labels)
        self.optimizer.zero_grad(set_to_none=True)
        for number, (batch, label) in enumerate(zip(batches, labels, strict=True), start=1):
            with gradient_sync(self.network, number == len(batches)):
                output, strong = self.forward_student(batch)
                losses = compute_losses(
                    output, label, strong, batch.masked, self.config, self.class_balance, totals, self.prior
                )  # fmt: skip
                losses.total.backward()
        return losses, labels

    @torch.no_grad()
    def pseudo_labels(self, batch: TrainBatch) -> PseudoLabels:
        """From the teacher, on the weak views; corrected by similar images with --pseudo-labels propagated."""
        with self.autocast():
            logits = self.teacher(normalize(batch.weak, self.preprocess))
        probabilities = upcast(logits).softmax(-1)
        if self.propagated is not None:
            probabilities = self.propagated(probabilities, batch.samples)
        return make_pseudo_labels(probabilities, self.threshold)

    def forward_student(self, batch: TrainBatch) -> tuple[StudentOutput, Tensor]:
        """(the student's output for the masked strong views, the strong views)."""
        strong = normalize(batch.strong, self.preprocess)
        with self.autocast():
            return self.network(strong, batch.masked), strong

    @torch.no_grad()
    def totals(self, batches: list[TrainBatch], labels: list[PseudoLabels]) -> GlobalSums:
        """The sums over the full batch that the losses need before any micro-batch can be differentiated.

        The class balance is that of all images, and its logarithm is not linear: so the student computes every
        micro-batch twice, here without gradients. That is the work of five forward passes instead of four."""
        terms = []
        for batch, label in zip(batches, labels, strict=True):
            output, strong = self.forward_student(batch)
            terms.append(sum_losses(output, label, strong, batch.masked))
        return all_reduce_sums(terms)

    @torch.no_grad()
    def agreement(self, zero_shot: MaskedViT, batch: TrainBatch) -> dict[str, float]:
        """How often the teacher agrees with the zero-shot model and the student, on this process's images."""
        images = normalize(batch.weak.to(self.world.device), self.preprocess)
        with self.autocast():
            teacher, other, student = (net(images).argmax(-1) for net in (self.teacher, zero_shot, self.student))
        shares = {"agreement": teacher == other, "stability": teacher == student}
        return {name: same.float().mean().item() for name, same in shares.items()}

    def learning_rate(self, step: int) -> float:
        """The learning rate of the topmost layer."""
        config = self.config
        return learning_rate(step, self.steps, config.lr, config.min_lr, config.batch_size)

    def ema_decay(self, step: int) -> float:
        config = self.config
        return ema_decay(step, config.ema_decay_init, config.ema_decay, config.ema_warmup_steps)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 for the networks, if set; weights, losses and EMA stay float32."""
        return torch.autocast(self.world.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def count_bytes(self) -> int:
        """About the bytes of `state_dict`: both networks and AdamW's two moments."""
        networks = [value for network in (self.student, self.teacher) for value in network.state_dict().values()]
        moments = [value for group in self.optimizer.param_groups for value in group["params"]] * 2
        return sum(value.numel() * value.element_size() for value in [*networks, *moments])

    def state_dict(self) -> dict[str, Any]:
        """It shares the memory of networks and optimizer."""
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "class_balance": self.class_balance,
        }
        if self.propagated is not None:
            state |= {"propagated": self.propagated.state_dict(), "threshold": self.threshold}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        balance = state["class_balance"]
        self.class_balance = None if balance is None else balance.to(self.world.device)
        if "propagated" in state:
            self.propagated = PropagatedLabels.from_state(state["propagated"], self.world.device)
            self.threshold = state["threshold"]


def build_optimizer(model: MaskedViT, layer_decay: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, with a group for each (layer, decayed or not): ``lr_scale`` = layer_decay ^ (layers + 1 - layer). The
    learning rate is set by `set_learning_rate` before every step.

    Only one-dimensional tensors have no weight decay: embeddings, projection and classifier are decayed."""
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        number, decayed = model.find_layer(name), parameter.ndim > 1
        group = groups.setdefault(
            (number, decayed),
            {
                "name": f"layer_{number}_{'decay' if decayed else 'no_decay'}",
                "params": [],
                "lr_scale": layer_decay ** (len(model.tower.blocks) + 1 - number),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=BETAS, eps=EPS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def learning_rate(step: int, steps: int, lr: float, min_lr: float, batch_size: int) -> float:
    """Cosine from lr to min_lr, both x batch_size / 256, over all steps; without warm-up, and min_lr is not reached."""
    scale = batch_size / 256
    return scale * (min_lr + (lr - min_lr) / 2 * (1 + math.cos(math.pi * step / steps)))


def step_if_finite(optimizer: torch.optim.AdamW) -> torch.Tensor:
    """Steps unless a gradient is not finite; returns whether it did, as a bool tensor on the device.

    The fused kernel skips the update when ``found_inf`` is set (as GradScaler sets it), so the host need not wait.
    After averaging, all processes have the same gradients."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    return finite


def update_balance(old: Tensor | None, new: Tensor | None, finite: Tensor) -> Tensor | None:
    """The running class balance after a step: the old one if the step was skipped; NaN stands for none."""
    if new is None:
        return None
    return torch.where(finite, new, torch.full_like(new, torch.nan) if old is None else old)


def make_teacher(student: MaskedViT) -> MaskedViT:
    """A deep copy of the student, without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay x teacher + (1 - decay) x student, for every parameter (classifier, mask token, decoder too)."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)


def ema_decay(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Linear ramp from start to end over warmup_steps, then constant."""
    return start + (end - start) * min(1.0, step / warmup_steps if warmup_steps else 1.0)
