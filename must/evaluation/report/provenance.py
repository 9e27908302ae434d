"""A model's provenance: the training log in its bundle and its curves, tables, and the commands to type."""

import json
import shlex
import sys
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

LAST_SHARE = 0.1
"""Share of the training, at its end, over which `stability` takes means."""


def training_log(bundle: str) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl beside the bundle's weights; none if there is no log.

    Incomplete lines (after a kill) and lines without a step are skipped.
    """
    uri = storage.join(bundle, LOG_FILE)
    if not storage.exists(uri):
        return []
    lines = []
    for text in storage.read_bytes(uri).decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and is_number(line.get("step")):
            lines.append(line)
    return lines


def stability(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Means over the last tenth of the training, on images of the training split; no label is involved.

    - stability: share of images to which student and teacher give the same class.
    - agreement: share of images to which the teacher gives the zero-shot class.
    - log_lines: number of log lines.

    None if no line has them, as of a bundle that was not trained.
    """
    lines = [line for line in lines if is_number(line.get("stability"))]
    if not lines:
        return None
    tail = [line for line in lines if line["step"] >= (1 - LAST_SHARE) * lines[-1]["step"]]
    return {
        "stability": sum(line["stability"] for line in tail) / len(tail),
        "agreement": sum(line["agreement"] for line in tail) / len(tail),
        "log_lines": len(tail),
    }


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
    facts |= {"rejected": f"{data.rejected:,}", "duplicates": f"{data.duplicates:,}"}
    facts |= {"not decodable here": f"{metrics.skipped:,}", "index sha256": data.index_sha256}
    keys = ("bundle", "backbone", "pretrained", "logit_factor", "must_version")
    origin = {key.replace("_", " "): getattr(model, key) for key in keys if getattr(model, key) != ""}
    own_table = ("config", "versions", "summary", "selection")
    origin |= {f"training: {key.replace('_', ' ')}": str(v) for key, v in record.items() if key not in own_table}
    origin |= {f"run: {key}": value for key, value in (record.get("summary") or {}).items()}
    tables = {"Data": facts, "Model": origin, "Versions": record.get("versions")}
    tables["Training configuration"] = record.get("config")
    return [(title, [(key, short(v)) for key, v in flatten(values)]) for title, values in tables.items() if values]


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


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
    inputs = f"--model {model} --baseline {baseline} --shards {shards}"
    file = shlex.quote(storage.join(config.output, METRICS_FILE))
    refine = f"--model {model} --classifier {baseline} --shards {shards} --output labels/"
    arguments = {"review": f"{inputs} --output review/", "refine": refine}
    arguments |= {"export": f"--model {model} --metrics {file} --output onnx/"}
    if work := find_adapted(config.model) or find_work(ReviewConfig, uris):
        arguments, model = dict.fromkeys(arguments, shlex.quote(work)), shlex.quote(work)
    predict = ("Name the classes of other images:", f"must predict --model {model} FOLDER --output predictions.csv")
    export = ("Take the model elsewhere, as ONNX:", f"must export {arguments['export']}")
    measured = metrics.model.selection and metrics.model.selection.measured
    more = "Measure it by more answers:" if measured else "Measure it by about fifty answers of yours:"
    review = (more, f"must review {arguments['review']}")
    less = ("Keep less of the training:", f"must refine {arguments['refine']} --alpha 0.2")
    if not config.baseline.endswith(".safetensors"):  # those two start from a classifier file
        return [predict, export]
    worse = [less, review] if metrics.model.provenance.get("config") else [review]  # less of what was trained
    return {"good": [predict, export], "bad": worse}.get(tone, [review, predict, export])


def command_line(stage: str, kind: type[StageConfig], values: dict[str, Any]) -> str:
    words = [f"must {stage}"]
    for parameter in list_parameters(kind):
        value = values.get(parameter.name, get_default(parameter))
        if value == get_default(parameter):
            continue
        name = flag(parameter.name)
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else shorten_path(str(value))
            words.append(f"{name} {shlex.quote(text)}")
    return " ".join(words)
