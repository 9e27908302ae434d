"""Evaluating inside a pod: the figures for Kubeflow's page, the report's copy, one line for the summary."""

import math
import os
from typing import Any

from must.base import storage
from must.base.files import REPORT_FILE
from must.base.lock import RUN_ID
from must.runtime.places import WorkUri


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The single numbers of both models for Kubeflow's table, which sorts them by name: the gain comes first."""
    models = {"adapted": metrics.get("adapted") or {}, "zero_shot": metrics.get("baseline") or {}}
    after, before = models["adapted"].get("top1"), models["zero_shot"].get("top1")
    first = {"accuracy": after, "accuracy_zero_shot": before}
    if after is not None and before is not None:
        first["accuracy_gain"] = after - before
    rest = {
        f"{model}_{name}": value
        for model, values in models.items()
        for name, value in values.items()
        if isinstance(value, float) and name not in ("top1", "images_per_s")
    }
    return plain(first | rest)


def confusion(metrics: dict[str, Any]) -> list[list[int]] | None:
    return ((metrics.get("confusion") or {}).get("adapted") or {}).get("matrix")


def plain(facts: dict[str, Any]) -> dict[str, Any]:
    """What an artifact's metadata may hold: without None and numbers that are none, which Kubeflow refuses."""
    return {
        name: value
        for name, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    """Top-1 of the model and of the zero-shot one, where there are labels."""
    pair = {"top1": metrics["adapted"].get("top1"), "before": (metrics.get("baseline") or {}).get("top1")}
    return plain(pair)


def keep_report(work_uri: str, report: str) -> str:
    """A copy beside the run's notes, where the summary's page can lead to; returns its place."""
    place = storage.join(WorkUri(work_uri).notes(os.environ.get(RUN_ID, "")), REPORT_FILE)
    storage.write_bytes(place, storage.read_bytes(report))
    return place


def headline(metrics: dict[str, Any]) -> str:
    after = metrics["adapted"].get("top1")
    if after is None:
        return "no labels"
    before = (metrics.get("baseline") or {}).get("top1")
    on = " on pictures that people were asked about" if metrics.get("data", {}).get("picked") else ""
    return f"top-1 {after:.1%}" + (f", zero-shot {before:.1%}" if before is not None else "") + on
