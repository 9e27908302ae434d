"""report.html: one self-contained page (no scripts, nothing loaded) from metrics, scores and the training log."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from must import storage
from must.config import EvaluateConfig
from must.evaluate import charts
from must.evaluate.charts import Line
from must.evaluate.pictures import Thumbnails
from must.evaluate.scores import Samples, Scores
from must.evaluate.verdict import verdict
from must.train.log import LOG_FILE

CLASSES_SHOWN = 30  # rows of the class chart at either end; the table below holds all
MATRIX_SHOWN = 25  # classes up to which the confusion matrices are drawn
NOTHING = "\N{EN DASH}"
IMAGES_SHOWN, PAIRS_SHOWN, OF_PAIR = 18, 8, 4

METRICS = (
    ("top1", "Top-1", "share of images whose most probable class is the label", True),
    ("top5", "Top-5", "share of images whose label is among the five most probable classes", True),
    ("mean_per_class", "Mean per class", "mean of the classes' recalls", True),
    ("nll", "Negative log-likelihood", "mean of -log p(label), in nats; smaller is better", False),
    ("ece", "Calibration error", "expected |accuracy - confidence| over 15 bins; smaller is better", True),
)
CURVES = (
    ("Losses", {"loss_self_training": "self-training", "loss_fairness": "fairness"}, False),
    ("Image losses", {"loss_reconstruction": "reconstruction", "loss_alignment": "alignment"}, False),
    ("Confident pseudo-labels", {"confident": "share of a batch"}, True),
    ("Pseudo-labels as zero-shot", {"agreement": "agreement"}, True),
    ("Learning rate", {"lr": "of the top layer"}, False),
    ("Images a second", {"images_per_s": "images/s"}, False),
)


def render_report(
    config: EvaluateConfig, metrics: dict[str, Any], samples: Samples, after: Scores, before: Scores | None
) -> str:
    """The page. Class and file names are escaped by the template."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "points": points}
    template = environment.from_string(resources.files("must.evaluate").joinpath("report.html").read_text("utf-8"))
    pictures = Thumbnails(config.shards, config.split)
    return template.render(
        m=metrics,
        verdict=verdict(metrics),
        name=metrics["baseline_name"],
        summary=summary_rows(metrics),
        classes=class_chart(metrics),
        matrices=matrices(metrics),
        pairs=changed_pairs(metrics, samples, after, before, pictures),
        gallery=gallery(metrics, samples, after, before, pictures),
        reliability=reliability(metrics),
        few_shot=few_shot(metrics),
        histogram=histogram(metrics),
        curves=training_curves(config.model),
        provenance=provenance(metrics),
        commands=commands(config, metrics),
    )


def summary_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a metric: both models with intervals, and the difference with its own (paired) interval."""
    if not metrics["labelled"]:
        return []
    rows = []
    for key, title, hint, is_share in METRICS:
        if key == "top5" and len(metrics["classes"]) <= 5:
            continue
        show = (lambda value: f"{100 * value:.1f}%") if is_share else (lambda value: f"{value:.3f}")
        row: dict[str, Any] = {"title": title, "hint": hint, "baseline": None, "difference": None}
        for model in ("baseline", "adapted"):
            if values := metrics[model]:
                low, high = values["intervals"][key]
                row[model] = {"value": show(values[key]), "interval": f"{show(low)} to {show(high)}"}
        if metrics["baseline"]:
            scale, digits = (100, 1) if is_share else (1, 3)
            change = scale * (metrics["adapted"][key] - metrics["baseline"][key])
            low, high = (scale * value for value in metrics["intervals"][key])
            better = (high < 0) if key in ("nll", "ece") else (low > 0)
            worse = (low > 0) if key in ("nll", "ece") else (high < 0)
            row["difference"] = {
                "value": signed(change, digits),
                "interval": f"{signed(low, digits)} to {signed(high, digits)}",
                "tone": "good" if better else "bad" if worse else "open",
            }
        rows.append(row)
    return rows


def class_chart(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Recall of each class, the largest gains first; of very many classes the two ends."""
    if not metrics["labelled"]:
        return None
    rows = [row for row in metrics["per_class"] if row["support"]]
    key = "difference" if metrics["baseline"] else "recall"
    rows.sort(key=lambda row: -row[key])
    hidden = max(0, len(rows) - 2 * CLASSES_SHOWN)
    shown = rows if not hidden else rows[:CLASSES_SHOWN] + rows[-CLASSES_SHOWN:]
    return {"shown": shown, "hidden": hidden, "all": sorted(metrics["per_class"], key=lambda row: row["class"])}


def matrices(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Confusion matrices with the share of each cell in its row, for colour."""
    if not metrics["labelled"] or len(metrics["classes"]) > MATRIX_SHOWN:
        return []
    found = []
    for model, title in (("baseline", metrics["baseline_name"]), ("adapted", "adapted")):
        if model in metrics["confusion"]:
            counts = np.array(metrics["confusion"][model]["matrix"])
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            rows = [list(zip(c, s.round(3).tolist(), strict=True)) for c, s in zip(counts.tolist(), share, strict=True)]
            found.append({"title": title, "rows": list(zip(metrics["classes"], rows, strict=True))})
    return found


def changed_pairs(
    metrics: dict[str, Any], samples: Samples, after: Scores, before: Scores | None, pictures: Thumbnails
) -> list[dict[str, Any]]:
    """Confusions (label, prediction) whose number changed most from the baseline, each with a few images."""
    if before is None or not metrics["labelled"]:
        return []
    classes = len(metrics["classes"])
    rows = np.flatnonzero(samples.labelled)
    labels = samples.labels[rows]
    old = labels * classes + before.prediction[rows]
    new = labels * classes + after.prediction[rows]
    keys = np.unique(np.concatenate([old, new]))
    keys = keys[keys // classes != keys % classes]
    was, now = (np.bincount(np.searchsorted(keys, x[np.isin(x, keys)]), minlength=len(keys)) for x in (old, new))
    found = []
    for i in np.argsort(-np.abs(now - was), kind="stable")[:PAIRS_SHOWN]:
        if was[i] == now[i]:
            continue
        examples = rows[(old == keys[i]) != (new == keys[i])][:OF_PAIR]
        found.append(
            {
                "label": metrics["classes"][keys[i] // classes],
                "prediction": metrics["classes"][keys[i] % classes],
                "was": int(was[i]),
                "now": int(now[i]),
                "images": [picture(row, metrics, samples, after, before, pictures) for row in examples],
            }
        )
    return found


def gallery(
    metrics: dict[str, Any], samples: Samples, after: Scores, before: Scores | None, pictures: Thumbnails
) -> dict[str, Any]:
    """The most confident mistakes; without labels, the most confident predictions that differ from the baseline's."""
    if metrics["labelled"]:
        wrong = np.flatnonzero(samples.labelled & (after.prediction != samples.labels))
        title, empty = "Most confident mistakes", "No mistakes on this split."
    elif before is not None:
        wrong = np.flatnonzero(after.prediction != before.prediction)
        title, empty = "Most confident changes", "No prediction changed."
    else:
        wrong = np.arange(len(samples.numbers))
        title, empty = "Most confident predictions", ""
    order = wrong[np.argsort(-after.confidence[wrong], kind="stable")][:IMAGES_SHOWN]
    images = [picture(row, metrics, samples, after, before, pictures) for row in order]
    return {"title": title, "empty": empty, "images": images}


def picture(
    row: int, metrics: dict[str, Any], samples: Samples, after: Scores, before: Scores | None, pictures: Thumbnails
) -> dict[str, Any]:
    classes = metrics["classes"]
    return {
        "data": pictures(int(samples.numbers[row])),
        "source": samples.sources[row],
        "label": classes[samples.labels[row]] if samples.labels[row] >= 0 else None,
        "adapted": classes[after.prediction[row]],
        "confidence": percent(float(after.confidence[row]), 0),
        "baseline": classes[before.prediction[row]] if before is not None else None,
    }


def reliability(metrics: dict[str, Any]) -> Markup | None:
    if not metrics["labelled"]:
        return None
    models = [("adapted", "adapted", metrics["adapted"]["reliability"])]
    if metrics["baseline"]:
        models.insert(0, (metrics["baseline_name"], "baseline", metrics["baseline"]["reliability"]))
    return charts.reliability_chart("Accuracy over confidence", models)


def few_shot(metrics: dict[str, Any]) -> dict[str, Any] | None:
    results = metrics.get("few_shot")
    if not results:
        return None
    lines = [
        Line(method["name"], f"rival-{i}", [(row["shots"], row["top1"]) for row in method["rows"]], dots=True)
        for i, method in enumerate(results["methods"], start=1)
    ]
    levels = [(metrics["baseline_name"], "baseline", metrics["baseline"]["top1"])]
    levels.append(("adapted without labels", "adapted", metrics["adapted"]["top1"]))
    return {"chart": charts.shots_chart("Accuracy over labelled images a class", lines, levels), **results}


def histogram(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """How often each class is predicted, the largest change first; widths in percent of the longest bar."""
    free = metrics["label_free"]
    new = np.array(free["adapted"]["histogram"])
    old = np.array(free["baseline"]["histogram"]) if free["baseline"] else new
    longest = max(int(new.max()), int(old.max()), 1)
    order = np.argsort(-np.abs(new - old), kind="stable") if len(new) > CLASSES_SHOWN else np.arange(len(new))
    return [
        {
            "class": metrics["classes"][i],
            "old": int(old[i]),
            "new": int(new[i]),
            "old_width": round(100 * float(old[i]) / longest, 1),
            "new_width": round(100 * float(new[i]) / longest, 1),
        }
        for i in order[:CLASSES_SHOWN]
    ]


def training_curves(bundle: str) -> list[dict[str, Any]]:
    """From train_log.jsonl beside the bundle, when it is there; lines that are cut off are left out."""
    uri = storage.join(bundle, LOG_FILE)
    if not storage.exists(uri):
        return []
    lines = []
    for text in storage.read_bytes(uri).decode("utf-8", "replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    found = []
    for title, names, is_share in CURVES:
        drawn = []
        for number, (key, name) in enumerate(names.items(), start=1):
            values = [(line["step"], line[key]) for line in lines if is_number(line.get(key)) and "step" in line]
            if len(values) > 1:
                drawn.append(Line(name, f"curve-{number}", values))
        if drawn:
            zero = title in ("Images a second", "Learning rate")
            chart = charts.line_chart(title, drawn, percent=is_share, zero=zero)
            found.append({"title": title, "lines": drawn, "chart": chart})
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def provenance(metrics: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of names and values, by topic."""
    model, data = metrics["model"], metrics["data"]
    story = model["provenance"]
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    splits = [
        (f"split {name}", f"{c['samples']:,} images, {c['labelled']:,} labelled") for name, c in data["splits"].items()
    ]
    facts = [("shards", data["shards"]), ("evaluated split", data["split"]), *splits]
    facts += [(key, f"{data[key]:,}") for key in ("rejected", "duplicates")]
    facts += [("not decodable here", f"{metrics['skipped']:,}"), ("index sha256", data["index_sha256"])]
    groups.append(("Data", [(name, str(value)) for name, value in facts]))
    keys = ("bundle", "backbone", "pretrained", "logit_factor", "must_version")
    facts = [(key.replace("_", " "), str(model[key])) for key in keys if model[key] not in (None, "")]
    for key, value in story.items():
        if key in ("config", "versions", "summary"):
            continue
        facts.append((f"training: {key.replace('_', ' ')}", str(value)))
    facts += [(f"run: {key}", short(value)) for key, value in flatten(story.get("summary") or {})]
    groups.append(("Model", facts))
    for key, title in (("versions", "Versions"), ("config", "Training configuration")):
        if story.get(key):
            groups.append((title, [(name, short(value)) for name, value in flatten(story[key])]))
    return groups


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found.extend(flatten(value, f"{prefix}{key}."))
        else:
            found.append((f"{prefix}{key}", value))
    return found


def short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def commands(config: EvaluateConfig, metrics: dict[str, Any]) -> list[str]:
    """What to type to get this model and this report again. Parameters with their default values are left out."""
    lines = []
    training = metrics["model"]["provenance"].get("config")
    if training:
        from must.config import TrainConfig

        lines.append(command("train", TrainConfig, training))
    lines.append(command("evaluate", EvaluateConfig, config.to_dict()))
    return lines


def command(stage: str, kind: type, values: dict[str, Any]) -> str:
    from dataclasses import MISSING, fields

    parts = [f"must {stage}"]
    for parameter in fields(kind):
        if parameter.name not in values:
            continue
        value = values[parameter.name]
        default = parameter.default if parameter.default is not MISSING else None
        if parameter.default_factory is not MISSING:
            default = parameter.default_factory()
        if value == default:
            continue
        name = "--" + parameter.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(name if value else name.replace("--", "--no-", 1))
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{name} {shlex.quote(text)}")
    return " ".join(parts)


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    return NOTHING if value is None else signed(100 * value, 1)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
