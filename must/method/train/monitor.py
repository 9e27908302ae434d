"""The values of a log line besides losses, and the conditions that stop a run."""

from dataclasses import dataclass
from typing import Any, NoReturn

from must.base.errors import UserError
from must.data.loading.loader import TrainBatch
from must.data.loading.reader import ShardReader
from must.method.distributed.process_group import World
from must.method.model.masked_vit import MaskedViT
from must.method.train.log import Meter
from must.method.train.step import MustStep
from must.method.train.train_state import TrainState

MAX_SKIPPED = 20  # steps without finite gradients in one run, after which training stops


@dataclass
class RunMonitor:
    batch_size: int  # images per step, over all processes
    max_replaced: float  # largest share of images that cannot be decoded
    world: World
    reader: ShardReader
    must_step: MustStep
    state: TrainState
    zero_shot: MaskedViT  # the model before training, for the share of labels that changed

    def check(self, meter: Meter, step: int, batch: TrainBatch) -> dict[str, Any]:
        """The means since the last reading, with the other values of a log line. Every process calls this.
        Raises ValueError: too many images cannot be decoded, or too many steps' gradients were not finite. A checkpoint
        is saved before."""
        count, progress, must_step = meter.count, self.state.progress, self.must_step
        line: dict[str, Any] = meter.read()
        progress.skipped += round(line.pop("skipped") * count)
        progress.replaced += round(self.world.sum(line.pop("replaced") * count))
        if self.too_many_replaced():
            self.stop(
                f"{progress.replaced} of {progress.step * self.batch_size:,} images could not be decoded, more "
                f"than --max-replaced {self.max_replaced:g}; `must index verify {self.reader.uri}` tells "
                "whether the shards are whole; shard again with --validate decode, or allow more"
            )
        if progress.skipped > MAX_SKIPPED:
            self.stop(f"the gradients of {progress.skipped} steps were not finite; lower --lr, or use --precision fp32")
        return line | {
            **self.agreement(batch),
            "epoch": (step + 1) / must_step.steps_per_epoch,
            "lr": must_step.learning_rate(step),
            "ema_decay": must_step.ema_decay(step),
            "skipped_steps": progress.skipped,
            "replaced_samples": progress.replaced,
            "images_per_s": meter.steps_per_s * self.batch_size,
        }

    def agreement(self, batch: TrainBatch) -> dict[str, float]:
        """How often the teacher agrees with the zero-shot model and the student, on this process's images. Every
        process calls this, as parameters may be sharded."""
        networks = (self.must_step.teacher, self.must_step.student, self.zero_shot)
        teacher, student, zero_shot = (self.must_step.predict(network, batch.weak) for network in networks)
        return {
            "agreement": (teacher == zero_shot).float().mean().item(),
            "stability": (teacher == student).float().mean().item(),
        }

    def too_many_replaced(self) -> bool:
        """The share is of all images so far, but of at least an epoch or 1000, so that early ones do not count."""
        images = self.state.progress.step * self.batch_size
        return self.state.progress.replaced > self.max_replaced * max(images, min(1000, len(self.reader)))

    def stop(self, reason: str) -> NoReturn:
        """Saves a checkpoint, then raises."""
        self.state.save(self.must_step)
        self.state.checkpoints.close()
        raise UserError(f"stopped after step {self.state.progress.step}: {reason}")
