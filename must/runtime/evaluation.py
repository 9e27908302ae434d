"""The stage evaluate: metrics for Kubeflow's page, a copy of the report, and a line for the summary."""

import math
import os
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import REPORT_FILE
from must.base.lock import RUN_ID
from must.evaluation.result import Metrics
from must.runtime.notes import Facts
from must.runtime.places import WorkUri


def evaluate(
    facts: Facts, work_uri: str, *, index_sha256: str, bundle: str, classifier: str, split: str, details: str,
    report: str,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates against the zero-shot model. The report is also copied to `report`, which Kubeflow shows, and to the
    run's notes, for the summary.

    Returns:
        top1: accuracy of the adapted model, 0..1; -1 without labels.
        figures: the numbers on Kubeflow's page.
        classes, confusion: names and matrix of the adapted model; empty without labels or with too many classes.
    """
    metrics: Metrics = call(
        "evaluate", model=bundle, baseline=classifier, shards=WorkUri(work_uri).shards, index_sha256=index_sha256,
        split=split, output=details,
    )  # fmt: skip
    page = storage.read_bytes(storage.join(details, REPORT_FILE))
    facts.report = storage.join(WorkUri(work_uri).notes(os.environ.get(RUN_ID, "")), REPORT_FILE)
    for uri in (report, facts.report):
        storage.write_bytes(uri, page)
    scores = accuracy(metrics)
    facts.top1, facts.before = scores.get("top1"), scores.get("before")
    facts.result = "no labels" if facts.top1 is None else f"top-1 {facts.top1:.1%}"
    if len(scores) == 2:
        facts.result += f", zero-shot {facts.before:.1%}"
    matrix = metrics.confusion.get("adapted", {}).get("matrix") or []
    top1 = scores.get("top1", -1.0)
    return {"top1": top1, "figures": figures(metrics), "classes": metrics.classes, "confusion": matrix}


def figures(metrics: Metrics) -> dict[str, float]:
    """The metrics of both models that are single numbers. The names put the gain first in Kubeflow's sorted table."""
    scores = accuracy(metrics)
    found: dict[str, Any] = {"accuracy": scores.get("top1"), "accuracy_zero_shot": scores.get("before")}
    if len(scores) == 2:
        found["accuracy_gain"] = scores["top1"] - scores["before"]
    for model, each in (("adapted", metrics.adapted), ("zero_shot", metrics.baseline)):
        found |= {f"{model}_{name}": value for name, value in (each.numbers if each else {}).items() if name != "top1"}
    return plain(found)


def plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Removes None, NaN and infinite numbers, which Kubeflow refuses in the metadata of an artifact."""
    return {
        name: value
        for name, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def accuracy(metrics: Metrics) -> dict[str, float]:
    """Top-1 accuracy of the model (`top1`) and of its baseline (`before`), if there are labels."""
    pair = {"top1": metrics.adapted, "before": metrics.baseline}
    return {name: scores.top1 for name, scores in pair.items() if scores}
