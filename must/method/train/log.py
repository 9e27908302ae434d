"""The output of a run: progress bar or plain lines, ``train_log.jsonl``, the trackers' curves, a summary at the end."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from must.base.progress import bar
from must.method.model.bundle import LOG_FILE
from must.method.model.provenance import RunSummary
from must.method.train.trackers import Trackers
from must.method.train.train_state import TrainProgress

logger = logging.getLogger(__name__)

LINE_SECONDS = 5  # seconds between lines where there is no terminal
LEARNED = 0.005  # share of confident labels below which the model learns nothing from them


class Meter:
    """Sums values on the device; only `read` makes the host wait."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.count = 0
        self.since, self.steps_per_s = time.monotonic(), 0.0  # between the last two readings

    def add(self, values: dict[str, Tensor]) -> None:
        stacked = torch.stack([value.detach() for value in values.values()])
        self.names = list(values)
        if stacked.device.type != "mps":  # MPS has no float64
            stacked = stacked.double()
        self.total = stacked if self.total is None else self.total + stacked
        self.count += 1

    def read(self) -> dict[str, float]:
        """Means since the last call."""
        assert self.total is not None
        means = dict(zip(self.names, (self.total / self.count).tolist(), strict=True))
        now = time.monotonic()
        self.since, self.steps_per_s = now, self.count / (now - self.since)
        self.total, self.count = None, 0
        return means


class TrainLog:
    """The main process's log. A resumed run starts with the lines in its checkpoint, in any folder."""

    def __init__(
        self, folder: Path, steps: int, first_step: int, lines: list[dict[str, Any]], trackers: Trackers
    ) -> None:
        self.path = folder / LOG_FILE
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = lines
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.file = self.path.open("a")
        self.steps = steps
        self.bar = bar(total=steps, initial=first_step, unit="step", leave=True)
        self.started, self.first_step = time.monotonic(), first_step
        self.last_line = 0.0
        self.trackers = trackers

    def advance(self) -> None:
        self.bar.update()

    def write(self, step: int, line: dict[str, Any]) -> None:
        """`step`: number of the step just done, from 0."""
        self.lines.append({"step": step, **line})
        self.file.write(json.dumps(self.lines[-1]) + "\n")
        self.file.flush()
        self.trackers.log(step, line)
        self.bar.set_postfix_str(brief(line))
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line >= LINE_SECONDS or step + 1 == self.steps):
            self.last_line = now
            done = step + 1 - self.first_step
            eta = (now - self.started) / done * (self.steps - step - 1)
            logger.info(f"step {step + 1}/{self.steps}  {brief(line)}  eta {tqdm.format_interval(eta)}")

    def close(self, finished: bool) -> None:
        """`finished`: the run took its last step."""
        self.bar.close()
        if finished and (warning := unlearned(self.lines)):
            logger.info(warning)
        self.file.close()
        self.trackers.close(finished)


class NoLog:
    """The log of the other processes: writes nothing."""

    def advance(self) -> None: ...

    def write(self, step: int, line: dict[str, Any]) -> None: ...

    def close(self, finished: bool) -> None: ...


def brief(line: dict[str, Any]) -> str:
    shares = f"confident {line['confident']:.0%}, same class as zero-shot {line['agreement']:.0%}"
    return f"loss {line['loss']:.3f}, {shares}, {line['images_per_s']:.0f} images/s"


def unlearned(lines: list[dict[str, Any]]) -> str:
    """A warning if no pseudo-label was ever confident: the model has then learned nothing about the classes."""
    if not lines or max(line.get("confident", 1.0) for line in lines) >= LEARNED:
        return ""
    return (
        "warning: the model was never sure of a class (confident 0% from the first step to the last), so that it has "
        "learned nothing of the classes; better class names or prompts, a model that knows such images, or a lower "
        "--confidence-threshold may help"
    )


def summary_of(progress: TrainProgress, batch_size: int) -> RunSummary:
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
