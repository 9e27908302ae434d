"""A run in numbers, and in one line."""

from __future__ import annotations

from typing import Any

from must.method.train.log import clock
from must.method.train.train_state import TrainProgress


def summary_of(progress: TrainProgress, batch_size: int) -> dict[str, Any]:
    """JSON-able; shares of the time, and the speed, are None where nothing was trained."""

    def share(seconds: float) -> float | None:
        return round(seconds / progress.seconds, 4) if progress.seconds else None

    images = progress.step * batch_size
    return {
        "steps": progress.step,
        "images": images,
        "seconds": round(progress.seconds, 2),
        "images_per_s": round(max(images, batch_size) / progress.seconds, 1) if progress.seconds else None,
        "waiting_for_data": share(progress.waited),
        "saving_checkpoints": share(progress.saving),
        "skipped_steps": progress.skipped,
        "replaced_samples": progress.replaced,
    }


def in_words(summary: dict[str, Any]) -> str:
    """One line for the log."""
    if not summary["steps"]:
        return "trained nothing"
    waiting, saving = (f"{summary[name]:.1%}" for name in ("waiting_for_data", "saving_checkpoints"))
    return (
        f"trained {summary['images']:,} images in {clock(summary['seconds'])} "
        f"({summary['images_per_s']} images/s, {waiting} of the time waiting for data, {saving} saving; "
        f"{summary['skipped_steps']} steps skipped, {summary['replaced_samples']} samples replaced)"
    )
