"""The settings of a step, in groups. TrainConfig has the same names, with their meaning and defaults.

The settings of views are in `must.data.augment.draws.ViewSettings`.
"""

from dataclasses import dataclass
from typing import Literal, Self

from must.base.parameters import part_of
from must.config import TrainConfig


@dataclass(frozen=True)
class Optim:
    """Settings of AdamW and of the teacher's moving average."""

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
    """Settings of the losses and the pseudo-labels."""

    fairness_weight: float
    reconstruction_weight: float
    align_weight: float
    loss_reduction: Literal["global", "rank"]
    confidence_threshold: float


@dataclass(frozen=True)
class Execution:
    """How a step is executed; of the result it changes only rounding."""

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
