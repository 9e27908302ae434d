"""Evaluating inside a pod: the figures for Kubeflow's page, the report's copy, one line for the summary."""

import math
import os
from dataclasses import dataclass
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import REPORT_FILE
from must.base.lock import RUN_ID
from must.evaluation.result import Metrics
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
        metrics: Metrics = call(
            "evaluate", model=bundle, baseline=classifier, shards=WorkUri(work_uri).shards, index_sha256=index_sha256,
            split=split, output=details,
        )  # fmt: skip
        storage.write_bytes(report, storage.read_bytes(storage.join(details, REPORT_FILE)))
        note.result = headline(metrics)
        top1 = accuracy(metrics)
        note.facts = Facts(
            top1=top1.get("top1"), before=top1.get("before"), report=keep_report(work_uri, report), report_link=link
        )
    matrix = metrics.confusion.get("adapted", {}).get("matrix")
    return Evaluated(top1.get("top1", -1.0), figures(metrics), metrics.classes, matrix or [])


def figures(metrics: Metrics) -> dict[str, float]:
    """The single numbers of both models for Kubeflow's table, which sorts them by name: the gain comes first."""
    after, before = metrics.adapted, metrics.baseline
    first = {"accuracy": after.top1 if after else None, "accuracy_zero_shot": before.top1 if before else None}
    if after and before:
        first["accuracy_gain"] = after.top1 - before.top1
    rest = {
        f"{model}_{name}": value
        for model, found in (("adapted", after), ("zero_shot", before))
        for name, value in (found.numbers if found else {}).items()
        if name != "top1"
    }
    return plain(first | rest)


def plain(facts: dict[str, Any]) -> dict[str, Any]:
    """What an artifact's metadata may hold: without None and numbers that are none, which Kubeflow refuses."""
    return {
        name: value
        for name, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def accuracy(metrics: Metrics) -> dict[str, float]:
    """Top-1 of the model (`top1`) and of what it is compared with (`before`), where there are labels."""
    pair = {"top1": metrics.adapted, "before": metrics.baseline}
    return {name: found.top1 for name, found in pair.items() if found}


def keep_report(work_uri: str, report: str) -> str:
    """A copy beside the run's notes, where the summary's page can lead to; returns its place."""
    place = storage.join(WorkUri(work_uri).notes(os.environ.get(RUN_ID, "")), REPORT_FILE)
    storage.write_bytes(place, storage.read_bytes(report))
    return place


def headline(metrics: Metrics) -> str:
    after, before = metrics.adapted, metrics.baseline
    if not after:
        return "no labels"
    on = " on pictures that people were asked about" if metrics.data.picked else ""
    return f"top-1 {after.top1:.1%}" + (f", zero-shot {before.top1:.1%}" if before else "") + on
