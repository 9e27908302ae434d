"""A model's provenance: the training log in its bundle, and tables."""

import json
import sys
from dataclasses import asdict
from typing import Any

from must.base import storage
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

    None if no line has them (a log of an earlier version, or a bundle that was not trained).
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


def provenance(metrics: Metrics) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of names and values, by topic."""
    record = dict(metrics.model.provenance)
    versions, config = record.pop("versions", None), record.pop("config", None)
    training = {name: value for name, value in record.items() if name not in ("selection", "data")}
    topics = {
        "Data": asdict(metrics.data) | {"not_decodable_here": metrics.skipped},
        "Model": vars(metrics.model) | {"provenance": training},
        "Versions": versions or {},
        "Training configuration": config or {},
    }
    return [(title, [(n, short(v)) for n, v in flatten(values)]) for title, values in topics.items() if values]


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs.extend(flatten(value, f"{prefix}{key}."))
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
