"""report.html: one self-contained page (no scripts, nothing loaded) from metrics, scores and the training log."""

import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from must.config import EvaluateConfig
from must.data.loading.reader import ShardReader
from must.evaluation.gate import measured_text
from must.evaluation.report.gallery import Pictures
from must.evaluation.report.provenance import provenance
from must.evaluation.report.verdict import verdict
from must.evaluation.result import Interval, Metrics, RefinedLabels
from must.evaluation.scores import Samples, Scores
from must.method.model.provenance import CheckResult, Selection

CLASSES_CHARTED = 30  # rows of the class chart at either end; the table below has all
MATRIX_SHOWN = 25  # classes up to which the confusion matrices are drawn

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

METRIC_ROWS = (  # of metrics.json; 1: a share of which more is better, -1: less is better
    ("top1", "Top-1", "share of images whose most probable class is the label", True, 1),
    ("top5", "Top-5", "share of images whose label is among the five most probable classes", True, 1),
    ("mean_per_class", "Mean per class", "mean of the classes' recalls", True, 1),
    ("nll", "Negative log-likelihood", "mean of -log p(label), in nats; smaller is better", False, -1),
    ("ece", "Calibration error", "expected |accuracy - confidence| over 15 bins; smaller is better", True, -1),
)


def percent(value: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if value is None else f"{100 * value:.{digits}f}%"


def points(value: float) -> str:
    """A difference of two shares."""
    return signed(100 * value, 1)


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=visible
    )
    environment.filters |= {"percent": percent, "points": points}
    return environment.from_string(resources.files("must.evaluation.report").joinpath("report.html").read_text("utf-8"))


def render_report(
    config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
    refined: RefinedLabels | None = None,
) -> str:  # fmt: skip
    """The page. Class and file names are escaped by the template."""
    reader = ShardReader(config.shards, config.split, sha256=config.index_sha256)
    pictures = Pictures(reader, metrics, samples, after, before)
    return template().render(
        m=metrics,
        verdict=verdict(metrics),
        changes=pictures.changes(),
        name=metrics.baseline_name,
        summary=summary_rows(metrics),
        classes=class_chart(metrics),
        matrices=matrices(metrics),
        pairs=pictures.changed_pairs(),
        gallery=pictures.gallery(),
        histogram=histogram(metrics),
        selection=selection(metrics),
        relabelled=pictures.relabelled(refined.changed) if refined and refined.split == config.split else [],
        provenance=provenance(metrics),
    )


def visible(value: Any) -> Any:
    """Text without control characters, bidirectional overrides (a file name with one would reorder the words beside it)
    and surrogates (bytes that are not UTF-8)."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def summary_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """One row per metric: both models with intervals, and the difference with its paired interval."""
    rows = []
    for key, title, hint, is_share, direction in METRIC_ROWS if metrics.labelled else ():
        if key == "top5" and len(metrics.classes) <= 5:
            continue
        row: dict[str, Any] = {"title": title, "hint": hint, "difference": None}
        for name in ("baseline", "adapted"):
            if model := getattr(metrics, name):
                show = percent if is_share else "{:.3f}".format
                row[name] = value_and_interval(getattr(model, key), model.intervals[key], show)
        if metrics.adapted and metrics.baseline:
            difference = getattr(metrics.adapted, key) - getattr(metrics.baseline, key)
            low, high = sorted(direction * value for value in metrics.intervals[key])
            row["difference"] = value_and_interval(difference, metrics.intervals[key], points if is_share else signed)
            row["difference"]["tone"] = "good" if low > 0 else "bad" if high < 0 else "open"
        rows.append(row)
    return rows


def value_and_interval(value: float, interval: Interval, show: Callable[[float], str]) -> dict[str, str]:
    return {"value": show(value), "interval": f"{show(interval[0])} to {show(interval[1])}"}


def class_chart(metrics: Metrics) -> dict[str, Any] | None:
    """Recall of each class, the largest gains first; with very many classes only both ends of the list."""
    if not metrics.labelled:
        return None
    rows = [row for row in metrics.per_class if row["support"]]
    key = "difference" if metrics.baseline else "recall"
    rows.sort(key=lambda row: -row[key])
    hidden = max(0, len(rows) - 2 * CLASSES_CHARTED)
    shown = rows if not hidden else rows[:CLASSES_CHARTED] + rows[-CLASSES_CHARTED:]
    return {"shown": shown, "hidden": hidden, "all": sorted(metrics.per_class, key=lambda row: row["class"])}


def matrices(metrics: Metrics) -> list[dict[str, Any]]:
    """Confusion matrices with the share of each cell in its row, for colour."""
    if not metrics.labelled or len(metrics.classes) > MATRIX_SHOWN:
        return []
    tables = []
    for model, title in (("baseline", metrics.baseline_name), ("adapted", "adapted")):
        if model in metrics.confusion:
            counts = np.array(metrics.confusion[model]["matrix"])
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            rows = [list(zip(c, s.round(3).tolist(), strict=True)) for c, s in zip(counts.tolist(), share, strict=True)]
            tables.append({"title": title, "rows": list(zip(metrics.classes, rows, strict=True))})
    return tables


def histogram(metrics: Metrics) -> list[dict[str, Any]]:
    """How often each class is predicted, the largest change first; widths in percent of the longest bar."""
    free = metrics.label_free
    new = np.array(free.adapted.histogram)
    old = np.array(free.baseline.histogram) if free.baseline else new
    longest = max(int(new.max()), int(old.max()), 1)
    order = np.argsort(-np.abs(new - old), kind="stable") if len(new) > CLASSES_CHARTED else np.arange(len(new))
    return [
        {
            "class": metrics.classes[i],
            "old": int(old[i]),
            "new": int(new[i]),
            "old_width": round(100 * float(old[i]) / longest, 1),
            "new_width": round(100 * float(new[i]) / longest, 1),
        }
        for i in order[:CLASSES_CHARTED]
    ]


def selection(metrics: Metrics) -> dict[str, Any] | None:
    """`text`, and `checks`, one column of the table each; None if the model has neither. A model of an earlier version
    has only the share that was kept."""
    chosen, compared = metrics.model.selection, metrics.label_free.compared
    split_title = f"this split, against {metrics.baseline_name}"
    columns = (("training images", chosen and chosen.check), (split_title, compared and compared.check))
    checks = [column(title, check) for title, check in columns if check]
    if not chosen and not checks:
        return None
    return {"text": selection_text(chosen) if chosen else "", "checks": checks}


def selection_text(chosen: Selection) -> str:
    reason = measured_text(chosen) or chosen.by
    return f"Alpha is {chosen.alpha:g}{f' ({reason})' if reason else ''}."


def column(title: str, check: CheckResult) -> dict[str, Any]:
    """A check as a column of the table."""
    dead = check.dead_classes
    return {
        "title": title,
        "rows": [
            f"{check.images:,}",
            f"{check.changed:.1%}",
            f"{check.agreement_before:.1%} → {check.agreement_after:.1%} (± {check.error:.1%})",
            f"{check.confidence_before:.2f} → {check.confidence_after:.2f}",
            f"{len(dead):,}" + (f": {', '.join(dead[:5])}{', ...' if len(dead) > 5 else ''}" if dead else ""),
        ],
        "warnings": check.warnings,
    }
