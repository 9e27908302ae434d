"""A version for the registry, and what its artifact tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import METRICS_FILE
from must.base.storage import read_json
from must.deploy.promote.registry import Registry
from must.runtime.evaluation import plain
from must.runtime.training import origin


def promote(
    *,
    bundle: str,
    onnx: str,
    details: str,
    decision: str,
    registry: str,
    model_name: str,
    key: str,
    champion: str,
    output: str,
    register: str = "none",
) -> dict[str, Any]:
    """Promotes, remembers that this data was decided on, and writes down where the version is."""
    metrics = storage.join(details, METRICS_FILE)
    latest = call(
        "promote", model=bundle, onnx=onnx, metrics=metrics, decision=decision, registry=registry, name=model_name,
        champion=champion, register=register,
    )  # fmt: skip
    place = Registry(registry, model_name)
    place.decide(key, f"promoted as {latest.version}", read_json(decision, "--decision")["reasons"])
    facts = {"version": latest.version, "registry": place.uri_of(latest.version), **model_facts(bundle, details)}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(facts, indent=1))
    return facts


def model_facts(bundle: str, details: str) -> dict[str, Any]:
    """Metadata of a model artifact: accuracy where there are labels, the data's and the code's revision."""
    metrics = read_json(storage.join(details, METRICS_FILE), "metrics")
    top1 = metrics["adapted"].get("top1")
    return plain(origin(bundle) | {"accuracy": top1})
