"""The size of a run, known before it begins."""

from dataclasses import dataclass
from typing import Any

import torch

from must.method.train.propagated import count_bytes

LARGE = 50e6  # parameters of a real model: ViT-B/32's image tower has 88 million
SLOW = (
    "a model of this size takes hours or days on a CPU; `must plan` measures how long; use a GPU (--device cuda; "
    "several: torchrun) or a smaller model"
)
GB = 10**9


@dataclass(frozen=True)
class Size:
    images: int  # of the split
    steps: int
    epochs: int
    batch_size: int  # over all processes
    micro_batch: int  # images that a process takes at once
    processes: int
    workers: int  # loader processes of each
    device: str
    parameters: int  # of the student
    checkpoint_bytes: int
    checkpoints_kept: int
    shards_bytes: int  # of the split
    cache_bytes: int  # most bytes of them in the cache; 0: they are on this machine
    threads: int = 0  # of torch, of each process on a CPU
    precision: str = "fp32"

    def lines(self) -> list[str]:
        files = f"checkpoints: {self.checkpoint_bytes / GB:.3g} GB each"
        if self.checkpoints_kept > 1:
            files += f", {self.checkpoints_kept * self.checkpoint_bytes / GB:.3g} for {self.checkpoints_kept} of them"
        if self.cache_bytes:
            files += f"; cache: up to {self.cache_bytes / GB:.3g} of {self.shards_bytes / GB:.3g} GB of remote shards"
        slow = self.device == "cpu" and self.parameters >= LARGE
        pieces = "" if self.micro_batch * self.processes == self.batch_size else f" in pieces of {self.micro_batch}"
        return [
            f"{self.steps:,} steps of {self.batch_size} images{pieces} ({self.epochs} epochs), {self.processes} "
            f"process(es) on {self.device} in {self.precision}, "
            f"{f'{self.threads} thread(s) and ' if self.threads else ''}{self.workers} loader(s) each",
            files,
            *([SLOW] if slow else []),
        ]


def measure_size(trainer: Any) -> Size:
    """`trainer`: a Trainer with the chosen settings."""
    config, batches, reader, must_step = trainer.config, trainer.batches, trainer.reader, trainer.must_step
    progress = trainer.state.progress
    classes = must_step.student.classifier.shape[1]
    labels = count_bytes(len(reader), classes) if config.pseudo_labels == "propagated" else 0
    keep = min(config.keep_checkpoints, -(-batches.steps // (config.checkpoint_every or batches.steps_per_epoch)))
    keep += batches.steps // config.keep_every if config.keep_every else 0
    total = sum(shard.bytes for shard in reader.shards)
    return Size(
        images=len(reader),
        steps=batches.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        micro_batch=trainer.micro_batch,
        processes=must_step.world.size,
        workers=trainer.loaders,
        device=must_step.world.device.type,
        parameters=sum(p.numel() for p in must_step.student.parameters()),
        checkpoint_bytes=state_bytes(must_step.student, must_step.teacher, must_step.optimizer) + labels,
        checkpoints_kept=keep,
        shards_bytes=total,
        cache_bytes=min(total, int(config.cache_gb * GB)) if reader.cache is not None else 0,
        threads=progress.threads,
        precision=progress.precision,
    )


def state_bytes(student: torch.nn.Module, teacher: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About the bytes of a checkpoint: both networks and AdamW's two moments."""
    networks = [value for network in (student, teacher) for value in network.state_dict().values()]
    moments = [value for group in optimizer.param_groups for value in group["params"]] * 2
    return sum(value.numel() * value.element_size() for value in [*networks, *moments])


def duration(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
