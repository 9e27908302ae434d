"""The output of a run: its size at the start, progress bar or plain lines, ``train_log.jsonl``, a summary at the end;
and the conditions, checked with each log line, that stop a run."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from must.base.errors import UserError
from must.base.program import show_bar
from must.data.loader import TrainBatch
from must.data.reader import ShardReader
from must.model.bundle import LOG_FILE
from must.model.description import RunSummary
from must.model.masked_vit import MaskedViT
from must.training.checkpoint import TrainProgress, TrainState
from must.training.step import MustStep

logger = logging.getLogger(__name__)

LINE_SECONDS = 5  # seconds between lines where there is no terminal
MOST_REPLACED = 0.01  # share of undecodable images, whose places the next images take, above which training stops
LEARNED = 0.005  # share of confident labels below which the model learns nothing from them
COUNTS = ("skipped", "replaced")  # values of a step that are counted over the whole run
LARGE = 50e6  # parameters of a real model: ViT-B/32's image tower has 88 million
SLOW = (
    "a model of this size takes hours or days on a CPU; `must plan` measures how long; use a GPU (--device cuda; "
    "several: torchrun) or a smaller model"
)
GB = 10**9
MAX_SKIPPED, MAX_SKIPPED_SHARE = 20, 0.5  # steps without finite gradients, after which training stops; of all steps


@dataclass(frozen=True)
class Size:
    """The size of a run, known before it begins."""

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


class TrainLog:
    """Every process of a run has one and calls its methods; the main process writes. A resumed run starts with the
    lines in its checkpoint, in any folder. It ends a run with too many problems."""

    def __init__(self, folder: Path, reader: ShardReader, must_step: MustStep, state: TrainState, zero_shot: MaskedViT):
        """`zero_shot`: the model before training, for the share of labels that changed."""
        self.reader, self.must_step, self.state, self.zero_shot = reader, must_step, state, zero_shot
        self.path, self.first_step, self.last_line = folder / LOG_FILE, state.progress.step, 0.0
        self.started = self.since = time.monotonic()
        self.names: list[str] = []
        self.total: Tensor | None = None  # of the values of `count` steps, since the last line
        self.count = 0
        is_main = must_step.world.is_main
        self.bar = show_bar(total=must_step.steps, initial=self.first_step, unit="step", leave=True, quiet=not is_main)
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_lines))

    def add(self, values: dict[str, Tensor]) -> None:
        """The values of a step. They are added up on the device: only reading the sums makes the host wait."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if stacked.device.type != "mps":  # MPS has no float64
            stacked = stacked.double()
        self.names, self.count = list(values), self.count + 1
        self.total = stacked if self.total is None else self.total + stacked
        self.bar.update()

    def write(self, batch: TrainBatch) -> None:
        """A line: the means since the last one, and other values of the step just taken, of which `batch` is a part."""
        progress, must_step, step = self.state.progress, self.must_step, self.state.progress.step - 1
        self.count_problems()
        assert self.total is not None
        means = zip(self.names, (self.total / self.count).tolist(), strict=True)
        line: dict[str, Any] = {name: mean for name, mean in means if name not in COUNTS}
        now, left = time.monotonic(), must_step.steps - step - 1
        steps_per_s = self.count / (now - self.since)
        self.since, self.total, self.count = now, None, 0
        self.stop_on_problems()
        line |= {
            **must_step.agreement(self.zero_shot, batch),
            "epoch": (step + 1) / must_step.steps_per_epoch,
            "lr": must_step.learning_rate(step),
            "ema_decay": must_step.ema_decay(step),
            "skipped_steps": progress.skipped,
            "replaced_samples": progress.replaced,
            "images_per_s": steps_per_s * must_step.config.batch_size,
        }
        if not must_step.world.is_main:
            return
        self.state.log_lines.append({"step": step, **line})
        with self.path.open("a") as file:
            file.write(json.dumps(self.state.log_lines[-1]) + "\n")
        self.bar.set_postfix_str(describe_line(line))
        if self.bar.disable and (now - self.last_line >= LINE_SECONDS or not left):
            self.last_line = now
            eta = (now - self.started) / (step + 1 - self.first_step) * left
            logger.info(f"step {step + 1}/{must_step.steps}  {describe_line(line)}  eta {tqdm.format_interval(eta)}")

    def count_problems(self) -> None:
        """Adds skipped steps and undecodable images to the progress, which checkpoints hold. Every process calls it."""
        skipped = replaced = 0.0
        if self.total is not None:
            positions = [self.names.index(name) for name in COUNTS]
            skipped, replaced = self.total[positions].tolist()
            self.total[positions] = 0.0
        self.state.progress.skipped += round(skipped)
        self.state.progress.replaced += round(self.must_step.world.sum(replaced))

    def stop_on_problems(self) -> None:
        """Saves a checkpoint and raises UserError if too many images cannot be decoded, of all so far, but of at least
        an epoch or 1000; or if too many steps were skipped: in a short run half of them, at its end."""
        progress, config, steps = self.state.progress, self.must_step.config, self.must_step.steps
        images = progress.step * config.batch_size
        most = MAX_SKIPPED_SHARE * steps if progress.step == steps else MAX_SKIPPED + 1
        if progress.replaced > MOST_REPLACED * max(images, min(1000, len(self.reader))):
            reason = (
                f"{progress.replaced} of {images:,} images could not be decoded, more than "
                f"{MOST_REPLACED:.0%}; `must index verify {self.reader.uri}` tells whether the shards are whole; "
                "shard again with the packages of this machine"
            )
        elif progress.skipped >= min(most, MAX_SKIPPED + 1):
            skipped = f"the gradients of {progress.skipped} of {progress.step} steps were not finite"
            reason = f"{skipped}; lower --lr, or use --precision fp32"
        else:
            return
        self.state.save(self.must_step)
        self.state.checkpoints.close()
        raise UserError(f"stopped after step {progress.step}: {reason}")

    def close(self) -> None:
        self.bar.close()
        finished = self.must_step.world.is_main and self.state.progress.step == self.must_step.steps
        if finished and (warning := warn_unlearned(self.state.log_lines)):
            logger.info(warning)


def describe_line(line: dict[str, Any]) -> str:
    shares = f"confident {line['confident']:.0%}, same class as zero-shot {line['agreement']:.0%}"
    return f"loss {line['loss']:.3f}, {shares}, {line['images_per_s']:.0f} images/s"


def warn_unlearned(lines: list[dict[str, Any]]) -> str:
    """A warning if no pseudo-label was ever confident: the model has then learned nothing about the classes."""
    if not lines or max(line.get("confident", 1.0) for line in lines) >= LEARNED:
        return ""
    return (
        "warning: the model was never sure of a class (confident 0% from the first step to the last), so that it has "
        "learned nothing of the classes; better class names or prompts, a model that knows such images, or a lower "
        "--confidence-threshold may help"
    )


def summarize_run(progress: TrainProgress, batch_size: int) -> RunSummary:
    def share(seconds: float) -> float | None:
        return round(seconds / progress.seconds, 4) if progress.seconds else None

    images = progress.step * batch_size
    return RunSummary(
        steps=progress.step,
        images=images,
        seconds=round(progress.seconds, 2),
        images_per_s=round(max(images, batch_size) / progress.seconds, 1) if progress.seconds else None,
        waiting_for_data=share(progress.waited),
        saving_checkpoints=share(progress.saving),
        skipped_steps=progress.skipped,
        replaced_samples=progress.replaced,
    )


def in_words(summary: RunSummary) -> str:
    """One line for the log."""
    if not summary.steps:
        return "trained nothing"
    waiting, saving = (f"{share or 0:.1%}" for share in (summary.waiting_for_data, summary.saving_checkpoints))
    return (
        f"trained {summary.images:,} images in {tqdm.format_interval(summary.seconds)} "
        f"({summary.images_per_s} images/s, {waiting} of the time waiting for data, {saving} saving; "
        f"{summary.skipped_steps} steps skipped, {summary.replaced_samples} samples replaced)"
    )
