"""Evaluating inside a pod: the figures for Kubeflow's page, the report's copy, one line for the summary."""

import math
import os
from dataclasses import dataclass
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import REPORT_FILE
from must.base.lock import RUN_ID
from must.runtime.notes import Facts, stage_note
from must.runtime.places import WorkUri


@dataclass(frozen=True)
class Evaluated:
    """What Kubeflow's page shows. `top1`: of the adapted model, 0..1; -1 without labels."""

    top1: float
    figures: dict[str, float]
    classes: list[str]
    confusion: list[list[int]]  # of the adapted model; empty without labels or with too many classes


def evaluate(
    work_uri: str, *, index_sha256: str, bundle: str, classifier: str, split: str, details: str, report: str,
    link: str = "",
) -> Evaluated:  # fmt: skip
    """Evaluates against the zero-shot model. The report is also copied to `report`, where Kubeflow shows it; `link`
    leads to it on Kubeflow's page."""
    with stage_note(work_uri, "evaluate") as note:
        metrics = call(
            "evaluate", model=bundle, baseline=classifier, shards=WorkUri(work_uri).shards, index_sha256=index_sha256,
            split=split, output=details,
        )  # fmt: skip
        storage.write_bytes(report, storage.read_bytes(storage.join(details, REPORT_FILE)))
        note.result = headline(metrics)
        note.facts = Facts(**accuracy(metrics), report=keep_report(work_uri, report), report_link=link)
    top1 = metrics["adapted"].get("top1", -1.0)
    return Evaluated(top1, figures(metrics), metrics["classes"], confusion(metrics))


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


def confusion(metrics: dict[str, Any]) -> list[list[int]]:
    return ((metrics.get("confusion") or {}).get("adapted") or {}).get("matrix") or []


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
