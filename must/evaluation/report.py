"""report.html: one self-contained page (no scripts, nothing loaded) from metrics, scores and the training log; with the
model's provenance: the curves of its training, tables, and the commands to type."""

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from must.base import storage
from must.base.parameters import StageConfig, flag, get_default, list_parameters
from must.config import EvaluateConfig, ReviewConfig, TrainConfig
from must.config.work import METRICS_FILE, find_adapted, find_work, shorten_path
from must.evaluation.figures import (
    SMALL_SIDE,
    ChartLine,
    Features,
    Pictures,
    draw_lines,
    draw_map,
    format_points,
    format_signed,
)
from must.evaluation.gate import state_verdict
from must.evaluation.metrics import Samples, Scores
from must.evaluation.result import Metrics, RefinedLabels, format_percent, list_metrics
from must.method.answers.estimate import LIGHTS
from must.method.model.bundle import LOG_FILE

CLASSES_CHARTED = 30  # rows of the class chart at either end; the table below has all

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
    environment.filters |= {"percent": format_percent, "points": format_points}
    return environment.from_string(resources.files("must.evaluation").joinpath("report.html").read_text("utf-8"))


def render_report(
    config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
    refined: RefinedLabels | None = None, features: Features | None = None,
) -> str:  # fmt: skip
    """The page. Class and file names are escaped by the template. `features`: of the images on the map."""
    pictures = Pictures(config, metrics, samples, after, before, refined)
    headline = state_verdict(metrics)
    page = template().render(
        m=metrics,
        verdict=headline,
        steps=list_next_steps(config, metrics, headline.tone),
        changes=pictures.changes(),
        name=metrics.baseline_name,
        summary=make_summary_rows(metrics),
        less_reliable=list_worse(metrics),
        classes=draw_classes(metrics),
        zip=zip,
        pairs=pictures.changed_pairs(),
        gallery=pictures.gallery(),
        map=draw_map(pictures, features) if features else None,
        histogram=count_predictions(metrics),
        refined=refined,
        lights=LIGHTS,
        relabelled=pictures.relabelled(refined.changed) if refined and refined.split == config.split else [],
        of_classes=pictures.with_samples(refined.classes, SMALL_SIDE) if refined else [],
        unusual=pictures.with_samples(refined.unusual, SMALL_SIDE) if refined else [],
        copies=refined.count_copies() if refined else (0, 0),
        curves=draw_training_curves(read_training_log(config.model)),
        provenance=list_provenance(metrics),
        commands=list_report_commands(config, metrics),
    )
    return add_contents(page)


def add_contents(page: str) -> str:
    """The page with a table of contents, made of its headings, which hold no user text."""
    titles = re.findall("<h2>(.*?)</h2>", page)
    for number in range(len(titles)):
        page = page.replace("<h2>", f'<h2 id="part-{number}">', 1)
    entries = "".join(f'<li><a href="#part-{number}">{title}</a></li>' for number, title in enumerate(titles))
    return page.replace('<nav aria-label="contents">', f'<nav aria-label="contents"><ol>{entries}</ol>', 1)


def remove_controls(value: Any) -> Any:
    """Text without control characters, bidirectional overrides (a file name with one would reorder the words beside it)
    and surrogates (bytes that are not UTF-8)."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def make_summary_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """One row per metric: both models with intervals, and the difference with its paired interval."""
    models = {name: one for name in ("baseline", "adapted") if (one := getattr(metrics, name))}
    rows = []
    for key, title, hint in list_metrics(metrics) if models else ():
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
                "value": format_signed(change, digits),
                "interval": f"{format_signed(low, digits)} to {format_signed(high, digits)}",
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


def draw_classes(metrics: Metrics) -> dict[str, Any] | None:
    """Recall of each class, the largest gains first; with very many classes only both ends of the list."""
    if not metrics.labelled:
        return None
    key = "difference" if metrics.baseline else "recall"
    rows = sorted((row for row in metrics.per_class if row["support"]), key=lambda row: -row[key])
    hidden = max(0, len(rows) - 2 * CLASSES_CHARTED)
    shown = rows if not hidden else rows[:CLASSES_CHARTED] + rows[-CLASSES_CHARTED:]
    return {"shown": shown, "hidden": hidden, "all": sorted(metrics.per_class, key=lambda row: row["class"])}


def count_predictions(metrics: Metrics) -> list[tuple[str, int, int]]:
    """(class, how often the baseline predicts it, and the model); of many classes those that changed most."""
    free = metrics.label_free
    rows = list(zip(metrics.classes, (free.baseline or free.adapted).histogram, free.adapted.histogram, strict=True))
    if len(rows) > CLASSES_CHARTED:
        rows.sort(key=lambda row: -abs(row[2] - row[1]))
    return rows[:CLASSES_CHARTED]


def read_training_log(bundle: str) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl beside the bundle's weights; none if there is no log.

    Incomplete lines (after a kill) and lines without a step are skipped.
    """
    uri = storage.join(bundle, LOG_FILE)
    texts = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    lines = [storage.parse_object_or_none(text, dict) for text in texts]
    return [line for line in lines if line and is_number(line.get("step"))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


CURVES_SHOWN = 3  # in one chart
CURVES: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Self-training loss", {"loss_self_training": "cross entropy with the pseudo-labels"}, False),
    ("Image losses", {}, False),  # every other loss
    ("Class balance", {"loss_fairness": "fairness loss, smaller is nearer to equal shares, or those given"}, False),
    ("Confident pseudo-labels", {"confident": "share of a batch"}, True),
    ("Same class", {"agreement": "teacher and zero-shot", "stability": "student and teacher"}, True),
    ("Learning rate", {"lr": "of the top layer"}, False),
    ("Images a second", {"images_per_s": "images/s"}, False),
)


def draw_training_curves(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart per group of CURVES of which train_log.jsonl has values."""
    curves, known = [], {name for _, names, _ in CURVES for name in names} | {"loss"}
    others = {key: key.removeprefix("loss_") for line in lines for key in line if key.startswith("loss_")}
    for title, names, is_share in CURVES:
        plotted = []
        names = names or dict([(key, name) for key, name in others.items() if key not in known][:CURVES_SHOWN])
        for number, (key, name) in enumerate(names.items(), start=1):
            values = [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
            if len(values) > 1:
                plotted.append(ChartLine(name, f"curve-{number}", values))
        if plotted:
            zero = title in ("Images a second", "Learning rate")
            chart = draw_lines(title, plotted, percent=is_share, zero=zero)
            curves.append({"title": title, "lines": plotted, "chart": chart})
    return curves


def list_provenance(metrics: Metrics) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of names and values, by topic."""
    model, data, record = metrics.model, metrics.data, metrics.model.provenance
    facts = {"shards": data.shards, "evaluated split": data.split}
    facts |= {
        f"split {name}": f"{c['samples']:,} images, {c['labelled']:,} labelled" for name, c in data.splits.items()
    }
    if metrics.answered:
        facts |= {"labelled, but with an answer": f"{metrics.answered:,}, not measured"}
    facts |= {"rejected": f"{data.rejected:,}", "duplicates": f"{data.duplicates:,}"}
    facts |= {"not decodable here": f"{metrics.skipped:,}", "index sha256": data.index_sha256}
    keys = ("bundle", "backbone", "pretrained", "logit_factor", "must_version")
    origin = {key.replace("_", " "): getattr(model, key) for key in keys if getattr(model, key) != ""}
    own_table = ("config", "versions", "summary", "selection")
    origin |= {f"training: {key.replace('_', ' ')}": v for key, v in record.items() if key not in own_table}
    origin |= {f"run: {key}": value for key, value in (record.get("summary") or {}).items()}
    tables = {"Data": facts, "Model": origin, "Versions": record.get("versions")}
    tables["Training configuration"] = record.get("config")
    return [
        (title, [(key, abbreviate_value(v)) for key, v in flatten(values)])
        for title, values in tables.items()
        if values
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def abbreviate_value(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def list_report_commands(config: EvaluateConfig, metrics: Metrics) -> list[str]:
    """The commands that make this model and this report again, without parameters that have their default values."""
    training = metrics.model.provenance.get("config")
    train = [command_line("train", TrainConfig, training)] if training else []
    return [*train, command_line("evaluate", EvaluateConfig, config.to_dict())]


def list_next_steps(config: EvaluateConfig, metrics: Metrics, tone: str) -> list[tuple[str, str]]:
    """(why, command) after a report whose headline has this tone."""
    uris = {name: getattr(config, name) for name in ("model", "baseline", "shards")}
    model, baseline, shards = map(shlex.quote, uris.values())
    review = f"--model {model} --baseline {baseline} --shards {shards} --output review/"
    refine = f"--model {model} --classifier {baseline} --shards {shards} --output labels/"
    export = f"--model {model} --metrics {shlex.quote(storage.join(config.output, METRICS_FILE))} --output onnx/"
    if work := find_adapted(config.model) or find_work(ReviewConfig, uris):
        model = review = refine = export = shlex.quote(work)
    measured = metrics.model.selection and metrics.model.selection.measured
    more = "Measure it by more answers:" if measured else "Measure it by about fifty answers of yours:"
    use = [
        ("Name the classes of other images:", f"must predict --model {model} FOLDER --output predictions.csv"),
        ("Take the model elsewhere, as ONNX:", f"must export {export}"),
    ]
    if not config.baseline.endswith(".safetensors"):  # the others start from a classifier file
        return use
    if tone == "good":
        return [*use, ("Make it better by about fifty answers of yours:", f"must review {review}")]
    measure = (more, f"must review {review}")
    if tone != "bad":
        return [measure, *use]
    less = ("Keep less of the training:", f"must refine {refine} --alpha 0.2")
    return [less, measure] if metrics.model.provenance.get("config") else [measure]


def command_line(stage: str, kind: type[StageConfig], values: dict[str, Any]) -> str:
    words = [f"must {stage}"]
    for parameter in list_parameters(kind):
        default, name = get_default(parameter), flag(parameter.name)
        value = values.get(parameter.name, default)
        if isinstance(value, bool) and value != default:
            words.append(name if value else name.replace("--", "--no-", 1))
        elif value != default:
            text = ",".join(map(str, value)) if isinstance(value, list) else shorten_path(str(value))
            words.append(f"{name} {shlex.quote(text)}")
    return " ".join(words)
