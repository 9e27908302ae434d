"""report.html: one self-contained page (nothing loaded, one script of its own, which searches the pictures) from
metrics, scores, labels and the training log."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from must.answers.estimate import LIGHTS
from must.config import EvaluateConfig
from must.config.work import find_adapted, shorten_path
from must.evaluation.figures import Pictures, count_sure, draw_training_curves, read_training_log
from must.evaluation.gate import state_verdict
from must.evaluation.metrics import Samples, Scores
from must.evaluation.result import (
    NOTHING,
    Metrics,
    RefinedLabels,
    describe_abstention,
    format_percent,
    list_metrics,
)

CLASSES_SHOWN, PAIRS_SHOWN, MATRIX_SHOWN = 60, 12, 25  # rows of tables; classes of a matrix
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=remove_controls,
    )
    environment.filters |= {"percent": format_percent, "sha256": hash_script}
    return environment.from_string(resources.files("must.evaluation").joinpath("report.html").read_text("utf-8"))


def hash_script(text: str) -> str:
    """As a content security policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render_report(
    config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
    refined: RefinedLabels | None = None,
) -> str:  # fmt: skip
    """The page. Class and file names are escaped by the template."""
    pictures = Pictures(config, metrics, samples, after, before, refined)
    check = metrics.label_free.compared and metrics.label_free.compared.check
    chosen = metrics.model.selection
    return template().render(
        m=metrics,
        name=metrics.baseline_name,
        verdict=state_verdict(metrics),
        refined=refined,
        tiles=list_tiles(metrics, refined),
        left=any(row.accepted is False for row in refined.rows) if refined else False,
        all_named=all(row.person for row in refined.rows) if refined else False,
        work=shorten_path(find_adapted(config.model) or ""),
        kinds=pictures.gallery(),
        lights=LIGHTS,
        changes=pictures.changes(),
        summary=list_numbers(metrics),
        notes=list_notes(metrics),
        warnings=dict.fromkeys(line for one in (chosen and chosen.check, check) if one for line in one.warnings),
        classes=list_classes(metrics),
        pairs=metrics.confusion.get("pairs", [])[:PAIRS_SHOWN],
        matrix=metrics.confusion.get("matrix") if len(metrics.classes) <= MATRIX_SHOWN else None,
        curves=draw_training_curves(read_training_log(config.model)),
        provenance=list_provenance(metrics),
        zip=zip,
    )


def remove_controls(value: Any) -> Any:
    """Text without control characters, bidirectional overrides (a file name with one would reorder the words beside it)
    and surrogates (bytes that are not UTF-8)."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def list_tiles(metrics: Metrics, refined: RefinedLabels | None) -> list[tuple[str, str]]:
    """(number, meaning), three: of the labels, if there are any, else of the accuracy."""
    model, before, selection = metrics.adapted, metrics.baseline, metrics.model.selection
    of_model = (
        (format_percent(model.top1), f"of {metrics.labelled:,} labelled test images are right") if model else None
    )
    if not refined:
        tiles = [] if not before else [(format_percent(before.top1), f"were right before ({metrics.baseline_name})")]
        if model and metrics.paired:
            changed = f"{metrics.paired.fixed:,} / {metrics.paired.broken:,}", "images are right now / wrong now"
            return [of_model or ("", ""), *tiles, changed]
        confidence, compared = metrics.label_free.adapted.confidence, metrics.label_free.compared
        same = [(format_percent(compared.agreement), f"keep the class of {metrics.baseline_name}")] if compared else []
        unmeasured = [(f"{metrics.images:,}", "images"), *same, (format_percent(confidence), "mean probability")]
        return [of_model, *tiles] if of_model else unmeasured
    sure, named = count_sure(refined.rows), sum(row.person for row in refined.rows)
    of_all = f"of {len(refined.rows):,} pictures have a sure label" if sure is not None else "pictures have a label"
    measured = selection and selection.measured
    right = "?", "of the labels are right: nobody has checked them yet"
    if measured and measured.labels:
        value, low, high = measured.labels
        ends = f"{low:.0%} to {high:.0%}, " if low < high else ""
        right = format_percent(value), f"of the labels are right ({ends}by {measured.answers:,} answers)"
    elif named == len(refined.rows):
        right = "all", "labels are people's answers"
    elif of_model:
        right = of_model
    first = len(refined.rows) if sure is None else sure + named
    return [(f"{first:,}", of_all), (f"{named:,}", "of them a person has named"), right]


def list_numbers(metrics: Metrics) -> list[tuple[str, str, list[str]]]:
    """(title, meaning, cells) of each figure: of the baseline and the model, and their difference, with intervals."""
    models, rows = [one for one in (metrics.baseline, metrics.adapted) if one], list[tuple[str, str, list[str]]]()
    for key, title, hint in list_metrics(metrics) if models else ():
        scale, digits, unit = (1, 3, "") if key == "nll" else (100, 1, "%")
        cells = []
        for one in models:
            ends = " to ".join(f"{scale * end:.{digits}f}" for end in one.intervals.get(key, ()))
            cells.append(f"{scale * getattr(one, key):.{digits}f}{unit}" + (f" ({ends})" if ends else ""))
        if len(models) == 2:
            change = scale * (getattr(models[1], key) - getattr(models[0], key))
            ends = " to ".join(f"{scale * end:+.{digits}f}" for end in metrics.intervals.get(key, ()))
            cells.append((f"{change:+.{digits}f}" + (f" ({ends})" if ends else "")).replace("-", "\N{MINUS SIGN}"))
        rows.append((title, hint, cells))
    free = [one for one in (metrics.label_free.baseline, metrics.label_free.adapted) if one]
    blank = [NOTHING] if len(models) == 2 else []
    hint = "mean probability of the predicted class; it measures no accuracy"
    rows.append(("Confidence", hint, [*(format_percent(one.confidence) for one in free), *blank]))
    return rows


def list_notes(metrics: Metrics) -> list[str]:
    """Sentences below the numbers."""
    before, after, notes = metrics.baseline, metrics.adapted, list[str]()
    if 0 < metrics.labelled < metrics.images:
        notes.append(f"{metrics.images - metrics.labelled:,} of the {metrics.images:,} images have no label.")
    if before and after and after.top1 > before.top1 and (after.ece > before.ece or after.nll > before.nll):
        notes.append("Its probabilities are less reliable than before: see calibration error and likelihood.")
    if metrics.abstention and metrics.labelled:
        text = describe_abstention(metrics.abstention)
        notes.append(f"{text[0].upper()}{text[1:]}.")
    return notes


def list_classes(metrics: Metrics) -> list[dict[str, Any]]:
    """A row for each class, of many those that changed most: with labels recall and precision, else predictions."""
    free = metrics.label_free
    if metrics.labelled:
        rows = [row for row in metrics.per_class if row["support"]]
    else:
        counts = zip(metrics.classes, (free.baseline or free.adapted).histogram, free.adapted.histogram, strict=True)
        rows = [{"class": name, "before": was, "after": now, "difference": now - was} for name, was, now in counts]
    if len(rows) > CLASSES_SHOWN:
        rows = sorted(rows, key=lambda row: -abs(row["difference"] or 0))[:CLASSES_SHOWN]
    return rows


def list_provenance(metrics: Metrics) -> list[tuple[str, str]]:
    """Three lines; metrics.json beside the page has all values."""
    model, data, record = metrics.model, metrics.data, metrics.model.provenance
    selection, memory, summary = model.selection, record.get("memory") or {}, record.get("summary") or {}
    parts = [f"{model.backbone} {model.pretrained}".strip(), f"weights {model.weights_sha256[:12]}"]
    if record.get("config"):
        parts.append(f"trained {summary.get('steps', 0):,} steps")
    if selection and selection.alpha not in (0, 1):
        parts.append(f"a share of {selection.alpha:g} of the training is kept")
    if memory:
        parts.append(f"a memory of {memory['images']:,} images and {memory.get('answers', 0):,} answers")
    skipped = [(data.rejected, "files rejected"), (data.duplicates, "duplicates"), (metrics.skipped, "not decodable"),
               (metrics.answered, "labelled, but with an answer: not measured")]  # fmt: skip
    counts = [f"{count:,} {what}" for count, what in skipped if count]
    images = [f"split {data.split} of {shorten_path(data.shards)}", f"index {data.index_sha256[:12]}", *counts]
    versions = [f"{name} {version}" for name, version in (record.get("versions") or {}).items()]
    made = [f"must {metrics.must_version}", *(["the model by " + ", ".join(versions)] if versions else [])]
    return [("Model", ", ".join(parts)), ("Images", ", ".join(images)), ("Made by", "; ".join(made))]
