"""report.html: one self-contained page (no scripts, nothing loaded) from metrics, scores and the training log."""

import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from must.config import EvaluateConfig
from must.evaluation.report import charts
from must.evaluation.report.charts import percent, points, signed
from must.evaluation.report.gallery import SMALL_SIDE, Pictures
from must.evaluation.report.map import Vectors, draw_map
from must.evaluation.report.provenance import commands, next_steps, provenance, training_curves, training_log
from must.evaluation.report.verdict import verdict
from must.evaluation.result import Metrics, RefinedLabels
from must.evaluation.scores import Samples, Scores
from must.method.answers.estimate import LIGHTS
from must.method.model.description import CheckResult

CLASSES_CHARTED = 30  # rows of the class chart at either end; the table below has all
MATRIX_SHOWN = 25  # classes up to which the confusion matrices are drawn

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

METRIC_ROWS = (
    ("top1", "Top-1", "share of images whose most probable class is the label", True),
    ("top5", "Top-5", "share of images whose label is among the five most probable classes", True),
    ("mean_per_class", "Mean per class", "mean of the classes' recalls", True),
    ("nll", "Negative log-likelihood", "mean of -ln of the label's probability; smaller is better", False),
    ("ece", "Calibration error", "expected |accuracy - confidence| over 15 bins; smaller is better", True),
)


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=visible
    )
    environment.filters |= {"percent": percent, "points": points}
    return environment.from_string(resources.files("must.evaluation.report").joinpath("report.html").read_text("utf-8"))


def render_report(
    config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
    refined: RefinedLabels | None = None, vectors: Vectors | None = None,
) -> str:  # fmt: skip
    """The page. Class and file names are escaped by the template. `vectors`: of the images on the map."""
    pictures = Pictures(config, metrics, samples, after, before, refined)
    headline = verdict(metrics)
    page = template().render(
        m=metrics,
        verdict=headline,
        steps=next_steps(config, metrics, headline.tone),
        changes=pictures.changes(),
        name=metrics.baseline_name,
        summary=summary_rows(metrics),
        less_reliable=list_worse(metrics),
        classes=class_chart(metrics),
        matrices=matrices(metrics),
        pairs=pictures.changed_pairs(),
        gallery=pictures.gallery(),
        map=draw_map(pictures, vectors) if vectors else None,
        reliability=reliability(metrics),
        histogram=histogram(metrics),
        selection=selection(metrics),
        refined=refined,
        lights=LIGHTS,
        relabelled=pictures.relabelled(refined.changed) if refined and refined.split == config.split else [],
        of_classes=pictures.with_samples(refined.classes, SMALL_SIDE) if refined else [],
        misfits=pictures.with_samples(refined.misfits) if refined else [],
        curves=training_curves(training_log(config.model)),
        provenance=provenance(metrics),
        commands=commands(config, metrics),
    )
    return with_contents(page)


def with_contents(page: str) -> str:
    """The page with a table of contents, made of its headings, which hold no user text."""
    titles = re.findall("<h2>(.*?)</h2>", page)
    for number in range(len(titles)):
        page = page.replace("<h2>", f'<h2 id="part-{number}">', 1)
    entries = "".join(f'<li><a href="#part-{number}">{title}</a></li>' for number, title in enumerate(titles))
    return page.replace('<nav aria-label="contents">', f'<nav aria-label="contents"><ol>{entries}</ol>', 1)


def visible(value: Any) -> Any:
    """Text without control characters, bidirectional overrides (a file name with one would reorder the words beside it)
    and surrogates (bytes that are not UTF-8)."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def summary_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """One row per metric: both models with intervals, and the difference with its paired interval."""
    if not metrics.labelled:
        return []
    rows = []
    for key, title, hint, is_share in METRIC_ROWS:
        if key == "top5" and len(metrics.classes) <= 5:
            continue
        show = (lambda value: f"{100 * value:.1f}%") if is_share else (lambda value: f"{value:.3f}")
        row: dict[str, Any] = {"title": title, "hint": hint, "baseline": None, "difference": None}
        for model in ("baseline", "adapted"):
            if values := getattr(metrics, model):
                spread = ""
                if key in values.intervals:
                    low, high = values.intervals[key]
                    spread = f"{show(low).rstrip('%')} to {show(high)}"
                row[model] = {"value": show(getattr(values, key)), "interval": spread}
        if metrics.adapted and metrics.baseline and key in metrics.intervals:
            scale, digits = (100, 1) if is_share else (1, 3)
            change = scale * (getattr(metrics.adapted, key) - getattr(metrics.baseline, key))
            low, high = (scale * value for value in metrics.intervals[key])
            better = (high < 0) if key == "nll" else (low > 0)
            worse = (low > 0) if key == "nll" else (high < 0)
            row["difference"] = {
                "value": signed(change, digits),
                "interval": f"{signed(low, digits)} to {signed(high, digits)}",
                "tone": "good" if better else "bad" if worse else "open",
            }
        rows.append(row)
    return rows


def list_worse(metrics: Metrics) -> str:
    """What says that probabilities are less reliable than before, where top-1 rose; '' if nothing does."""
    before, after = metrics.baseline, metrics.adapted
    if not before or not after or after.top1 <= before.top1:
        return ""
    rows = (
        ("the calibration error", f"{before.ece:.1%}", f"{after.ece:.1%}", after.ece > before.ece),
        ("the negative log-likelihood", f"{before.nll:.3f}", f"{after.nll:.3f}", after.nll > before.nll),
    )
    worse = [f"{name} rose from {old} to {new}" for name, old, new, rose in rows if rose and old != new]
    return " and ".join(worse)


def class_chart(metrics: Metrics) -> dict[str, Any] | None:
    """Recall of each class, the largest gains first; with very many classes only both ends of the list."""
    if not metrics.labelled:
        return None
    key = "difference" if metrics.baseline else "recall"
    rows = sorted((row for row in metrics.per_class if row["support"]), key=lambda row: -row[key])
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


def reliability(metrics: Metrics) -> Markup | None:
    if not metrics.adapted:
        return None
    models = [("adapted", "adapted", metrics.adapted.reliability)]
    if metrics.baseline:
        models.insert(0, (metrics.baseline_name, "baseline", metrics.baseline.reliability))
    return charts.reliability_chart("Accuracy over confidence", models)


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
    """`text`, and `checks`, one column of the table each; None if the model has neither."""
    chosen, compared = metrics.model.selection, metrics.label_free.compared
    split_title = f"this split, against {metrics.baseline_name}"
    columns = (("training images", chosen and chosen.check), (split_title, compared and compared.check))
    checks, text = [column(title, check) for title, check in columns if check], ""
    if chosen:
        share = {0.0: "The weights are zero-shot's", 1.0: "All of it is kept"}.get(chosen.alpha, "A part is kept")
        text = f"{share} (alpha {chosen.alpha:g}{f'; {chosen.by}' if chosen.by else ''})."
        text += f" {chosen.measured.text()}." if chosen.measured else ""
    return {"text": text, "checks": checks} if text or checks else None


def column(title: str, check: CheckResult) -> dict[str, Any]:
    """A check as a column of the table."""
    dead = check.dead_classes
    return {
        "title": title,
        "rows": [
            f"{check.images:,}",
            f"{check.changed:.1%}",
            f"{check.effective_before:.1f} → {check.effective_after:.1f}",
            f"{check.confidence_before:.2f} → {check.confidence_after:.2f}",
            f"{len(dead):,}" + (f": {', '.join(dead[:5])}{', ...' if len(dead) > 5 else ''}" if dead else ""),
        ],
        "warnings": check.warnings,
    }
