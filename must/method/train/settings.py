"""What a step takes of a run's settings, by parts. TrainConfig has the same names, with what they mean and defaults.

The views' part is `must.data.augment.draws.ViewSettings`.
"""

from dataclasses import dataclass
from typing import Literal, Self

from must.base.parameters import part_of
from must.config import TrainConfig


@dataclass(frozen=True)
class Optim:
    """Of AdamW, and of the teacher's moving average."""

    batch_size: int
    lr: float
    min_lr: float
    weight_decay: float
    layer_decay: float
    ema_decay_init: float
    ema_decay: float
    ema_warmup_steps: int


@dataclass(frozen=True)
class Objective:
    """Of the losses and the pseudo-labels."""

    fairness_weight: float
    reconstruction_weight: float
    align_weight: float
    loss_reduction: Literal["global", "rank"]
    confidence_threshold: float


@dataclass(frozen=True)
class Execution:
    """How a step is carried out; it decides nothing about the result but rounding."""

    precision: Literal["auto", "fp32", "bf16"]
    parallel: Literal["ddp", "fsdp"]
    activation_checkpointing: bool


@dataclass(frozen=True)
class StepSettings:
    optim: Optim
    objective: Objective
    execution: Execution

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        return cls(part_of(config, Optim), part_of(config, Objective), part_of(config, Execution))
