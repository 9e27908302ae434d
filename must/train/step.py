"""One step of the method (arXiv 2206.02967, section 3): teacher, student, losses, optimizer, EMA."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from must.config import TrainConfig
from must.data.eval_view import Preprocess
from must.data.stream import TrainBatch
from must.data.views import normalize
from must.model.masked_vit import MaskedViT
from must.train.distributed import World
from must.train.losses import LossWeights, must_losses, pseudo_labels
from must.train.optimizer import build_optimizer, ema_decay, learning_rate, set_learning_rate, step_if_finite
from must.train.teacher import make_teacher, update_teacher


class MustStep:
    """The two networks and what changes them.

    Args:
        student: the zero-shot model, on its device; it is trained in place.
        steps, steps_per_epoch: of the whole run, for the schedules.
    """

    def __init__(
        self,
        student: MaskedViT,
        preprocess: Preprocess,
        config: TrainConfig,
        world: World,
        steps: int,
        steps_per_epoch: int,
    ) -> None:
        self.student, self.preprocess, self.config, self.world = student, preprocess, config, world
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.teacher = make_teacher(student)
        layers = len(student.visual.transformer.resblocks)
        self.optimizer = build_optimizer(student, layers, config.layer_decay, config.weight_decay)
        self.weights = LossWeights(config.fairness_weight, config.reconstruction_weight, config.align_weight)
        self.class_balance: Tensor | None = None  # of the epoch's steps before, with many classes
        self.network: nn.Module = student
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.network = DistributedDataParallel(student, device_ids=devices)

    def __call__(self, step: int, batch: TrainBatch) -> dict[str, Tensor]:
        """Trains on this process's part of global batch `step`; values of the global batch, on the device."""
        config = self.config
        batch = batch.to(self.world.device)
        weak, strong = normalize(batch.weak, self.preprocess), normalize(batch.strong, self.preprocess)
        set_learning_rate(self.optimizer, self.learning_rate(step))
        if step % self.steps_per_epoch == 0:
            self.class_balance = None

        with torch.no_grad(), self.autocast():
            labels = pseudo_labels(self.teacher(weak), config.confidence_threshold)
        with self.autocast():
            output = self.network(strong, batch.masked)
        losses = must_losses(
            output, labels, strong, batch.masked, self.weights, self.class_balance, config.loss_reduction
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        finite = step_if_finite(self.optimizer)
        update_teacher(self.teacher, self.student, self.ema_decay(step))
        self.class_balance = losses.class_balance
        return {**losses.values, "skipped": (~finite).float(), "replaced": batch.replaced.float()}

    @torch.no_grad()
    def predict(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """Class numbers [B] that a network gives to uint8 pixels [B, H, W, 3]."""
        with self.autocast():
            return network(normalize(pixels.to(self.world.device), self.preprocess)).argmax(-1)

    def learning_rate(self, step: int) -> float:
        """Of the topmost layer."""
        config = self.config
        return learning_rate(step, self.steps, config.lr, config.min_lr, config.batch_size)

    def ema_decay(self, step: int) -> float:
        return ema_decay(step, self.config.ema_decay_init, self.config.ema_decay, self.config.ema_warmup_steps)

    def autocast(self) -> Any:
        """bf16 for the networks, if wanted; weights, losses and EMA stay float32."""
        precision, device = self.config.precision, self.world.device.type
        if precision == "auto":
            precision = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "class_balance": self.class_balance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        balance = state["class_balance"]
        self.class_balance = None if balance is None else balance.to(self.world.device)
