"""A run of Weights & Biases, whose own variables say where: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ..."""

import os
from typing import Any

from must.base.exits import PREEMPTED
from must.method.train.trackers.base import Life


class WeightsAndBiases:
    """Offline, what an earlier life has logged is known by the log in the run's folder; else the server knows too."""

    def __init__(self, life: Life) -> None:
        self.life, self.run_id = life, life.run_id
        self.last = life.logged if life.run_id else -1

    def start(self, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "must"),
            dir=self.life.folder,
            id=os.environ.get("WANDB_RUN_ID") or self.run_id or None,
            resume="allow",
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run_id = self.run.id
        self.last = max(self.last, self.run.starting_step - 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        if step > self.last:
            self.run.log({f"train/{name}": value for name, value in values.items()}, step=step)
            self.last = step

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else PREEMPTED)
