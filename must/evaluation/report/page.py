"""report.html: one self-contained page (no scripts, nothing loaded) from metrics, scores and the training log."""

import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from must.config import EvaluateConfig
from must.evaluation.report import charts
from must.evaluation.report.charts import points, signed
from must.evaluation.report.gallery import SMALL_SIDE, Pictures
from must.evaluation.report.map import Features, draw_map
from must.evaluation.report.provenance import commands, next_steps, provenance, training_curves, training_log
from must.evaluation.report.verdict import verdict
from must.evaluation.result import Metrics, RefinedLabels
from must.evaluation.scores import Samples, Scores
from must.evaluation.table import percent
from must.method.answers.estimate import LIGHTS

CLASSES_CHARTED = 30  # rows of the class chart at either end; the table below has all

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

METRIC_ROWS = (
    ("top1", "Top-1", "share of images whose most probable class is the label"),
    ("top5", "Top-5", "share of images whose label is among the five most probable classes"),
    ("mean_per_class", "Mean per class", "mean of the classes' recalls"),
    ("nll", "Negative log-likelihood", "mean of -ln of the label's probability; smaller is better"),
    ("ece", "Calibration error", "expected |accuracy - confidence| over 15 bins; smaller is better"),
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
    refined: RefinedLabels | None = None, features: Features | None = None,
) -> str:  # fmt: skip
    """The page. Class and file names are escaped by the template. `features`: of the images on the map."""
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
        zip=zip,
        pairs=pictures.changed_pairs(),
        gallery=pictures.gallery(),
        map=draw_map(pictures, features) if features else None,
        reliability=reliability(metrics),
        histogram=histogram(metrics),
        refined=refined,
        lights=LIGHTS,
        relabelled=pictures.relabelled(refined.changed) if refined and refined.split == config.split else [],
        of_classes=pictures.with_samples(refined.classes, SMALL_SIDE) if refined else [],
        misfits=pictures.with_samples(refined.misfits) if refined else [],
        unusual=pictures.with_samples(refined.unusual, SMALL_SIDE) if refined else [],
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
    models = {name: one for name in ("baseline", "adapted") if (one := getattr(metrics, name))}
    rows = []
    for key, title, hint in METRIC_ROWS if models else ():
        if key == "top5" and len(metrics.classes) <= 5:
            continue
        scale, digits, unit = (1, 3, "") if key == "nll" else (100, 1, "%")
        row: dict[str, Any] = {"title": title, "hint": hint, "baseline": None, "difference": None}
        for model, one in models.items():
            ends = [f"{scale * end:.{digits}f}" for end in one.intervals.get(key, ())]
            spread = " to ".join(ends) + (unit if ends else "")
            row[model] = {"value": f"{scale * getattr(one, key):.{digits}f}{unit}", "interval": spread}
        if len(models) == 2 and key in metrics.intervals:
            change = scale * (getattr(models["adapted"], key) - getattr(models["baseline"], key))
            low, high = (scale * end for end in metrics.intervals[key])
            least, most = (-high, -low) if key == "nll" else (low, high)  # of the gain
            row["difference"] = {
                "value": signed(change, digits),
                "interval": f"{signed(low, digits)} to {signed(high, digits)}",
                "tone": "good" if least > 0 else "bad" if most < 0 else "open",
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


def reliability(metrics: Metrics) -> Markup | None:
    models = ((metrics.baseline_name, "baseline", metrics.baseline), ("adapted", "adapted", metrics.adapted))
    shown = [(name, style, model.reliability) for name, style, model in models if model]
    return charts.reliability_chart("Accuracy over confidence", shown) if shown else None


def histogram(metrics: Metrics) -> list[tuple[str, int, int]]:
    """(class, how often the baseline predicts it, and the model); of many classes those that changed most."""
    free = metrics.label_free
    rows = list(zip(metrics.classes, (free.baseline or free.adapted).histogram, free.adapted.histogram, strict=True))
    if len(rows) > CLASSES_CHARTED:
        rows.sort(key=lambda row: -abs(row[2] - row[1]))
    return rows[:CLASSES_CHARTED]
