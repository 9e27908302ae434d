"""A model's provenance: the training log in its bundle and its curves, tables, and the commands to type."""

import shlex
import sys
from collections.abc import Iterator
from typing import Any

from must.base import storage
from must.base.files import METRICS_FILE
from must.base.parameters import StageConfig, flag, get_default, list_parameters
from must.config import EvaluateConfig, ReviewConfig, TrainConfig
from must.config.work import find_adapted, find_work, shorten_path
from must.evaluation.report import charts
from must.evaluation.report.charts import Line
from must.evaluation.result import Metrics
from must.method.model.bundle import LOG_FILE


def training_log(bundle: str) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl beside the bundle's weights; none if there is no log.

    Incomplete lines (after a kill) and lines without a step are skipped.
    """
    uri = storage.join(bundle, LOG_FILE)
    texts = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    lines = [storage.object_or_none(text, dict) for text in texts]
    return [line for line in lines if line and is_number(line.get("step"))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


CURVES = (
    ("Self-training loss", {"loss_self_training": "cross entropy with the pseudo-labels"}, False),
    ("Image losses", {"loss_reconstruction": "reconstruction", "loss_alignment": "alignment"}, False),
    ("Class balance", {"loss_fairness": "fairness loss, smaller is nearer to equal shares, or those given"}, False),
    ("Confident pseudo-labels", {"confident": "share of a batch"}, True),
    ("Same class", {"agreement": "teacher and zero-shot", "stability": "student and teacher"}, True),
    ("Learning rate", {"lr": "of the top layer"}, False),
    ("Images a second", {"images_per_s": "images/s"}, False),
)


def training_curves(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart per group of CURVES of which train_log.jsonl has values."""
    curves = []
    for title, names, is_share in CURVES:
        plotted = []
        for number, (key, name) in enumerate(names.items(), start=1):
            values = [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
            if len(values) > 1:
                plotted.append(Line(name, f"curve-{number}", values))
        if plotted:
            zero = title in ("Images a second", "Learning rate")
            chart = charts.line_chart(title, plotted, percent=is_share, zero=zero)
            curves.append({"title": title, "lines": plotted, "chart": chart})
    return curves


def provenance(metrics: Metrics) -> list[tuple[str, list[tuple[str, str]]]]:
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
    return [(title, [(key, short(v)) for key, v in flatten(values)]) for title, values in tables.items() if values]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def commands(config: EvaluateConfig, metrics: Metrics) -> list[str]:
    """The commands that make this model and this report again, without parameters that have their default values."""
    training = metrics.model.provenance.get("config")
    train = [command_line("train", TrainConfig, training)] if training else []
    return [*train, command_line("evaluate", EvaluateConfig, config.to_dict())]


def next_steps(config: EvaluateConfig, metrics: Metrics, tone: str) -> list[tuple[str, str]]:
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
