"""What components do besides one call of a stage: figures for Kubeflow's page, the gate, the registry."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from must import storage
from must.cli import run
from must.evaluate.gate import ZERO_SHOT, Decision
from must.promote.decide import against_champion, as_markdown
from must.promote.promote import read_json
from must.promote.registry import Registry
from must.run.notes import RUN_ID, folder_of
from must.run.training import origin
from must.text import encoded


def evaluate(
    work_uri: str, index_sha256: str, bundle: str, classifier: str, split: str, details: str, report: str
) -> dict[str, Any]:
    """Evaluates against the zero-shot model; the report is also copied to where Kubeflow shows it."""
    shards = storage.join(work_uri, "shards")
    metrics = run(
        "evaluate", model=bundle, baseline=classifier, shards=shards, index_sha256=index_sha256, split=split,
        output=details,
    )  # fmt: skip
    storage.write_bytes(report, storage.read_bytes(storage.join(details, "report.html")))
    return metrics


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The single numbers of both models, for Kubeflow's table."""
    models = {name: metrics.get(name) or {} for name in ("baseline", "adapted")}
    return plain({f"{m}_{k}": v for m, values in models.items() for k, v in values.items() if isinstance(v, float)})


def confusion(metrics: dict[str, Any]) -> list[list[int]] | None:
    return ((metrics.get("confusion") or {}).get("adapted") or {}).get("matrix")


def plain(facts: dict[str, Any]) -> dict[str, Any]:
    """What an artifact's metadata may hold: without None and numbers that are none, which Kubeflow refuses."""
    return {
        name: value
        for name, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    """Top-1 of the model and of the zero-shot one, where there are labels."""
    pair = {"top1": metrics["adapted"].get("top1"), "before": (metrics.get("baseline") or {}).get("top1")}
    return plain(pair)


def keep_report(work_uri: str, report: str) -> str:
    """A copy beside the run's notes, where the summary's page can lead to; returns its place."""
    place = storage.join(folder_of(work_uri, os.environ.get(RUN_ID, "")), "report.html")
    storage.write_bytes(place, storage.read_bytes(report))
    return place


def headline(metrics: dict[str, Any]) -> str:
    after = metrics["adapted"].get("top1")
    if after is None:
        return "no labels"
    before = (metrics.get("baseline") or {}).get("top1")
    return f"top-1 {after:.1%}" + (f", zero-shot {before:.1%}" if before is not None else "")


def decide(
    work_uri: str,
    bundle: str,
    details: str,
    registry: str,
    name: str,
    key: str,
    champion: str,
    champion_uri: str,
    gate: str,
    settings: dict[str, Any],
    split: str,
    decision: str,
    page: str,
) -> tuple[Decision, dict[str, Any]]:
    """Asks the gate. Where there is a champion, the model must hold its own against it: that takes an evaluation.

    Returns:
        The decision, and what the summary says of it: outcome, reasons, and the champion's accuracy if it was measured.
    """
    facts: dict[str, Any] = {}
    metrics, against = storage.join(details, "metrics.json"), "the zero-shot model"
    with tempfile.TemporaryDirectory() as folder:
        if champion_uri and gate != "none":
            shards = storage.join(work_uri, "shards")
            same = read_json(storage.join(details, "metrics.json"), "metrics")["data"]["index_sha256"]
            run(
                "evaluate", model=bundle, baseline=champion_uri, shards=shards, index_sha256=same, split=split,
                output=folder,
            )  # fmt: skip
            against = f"the champion, {champion}"
            by_champion = f"{folder}/metrics.json"
            facts = {"against": against, "before": accuracy(read_json(by_champion, "metrics")).get("before")}
            if gate == "labelled":
                metrics = by_champion
        result: Decision = run("gate", metrics=metrics, gate=gate, output=decision, **settings)
        if champion_uri and gate == "label-free":
            result = against_champion(result, run("gate", metrics=by_champion, gate=gate, **settings))
            storage.write_bytes(decision, json.dumps(result.to_dict(), indent=1).encode())
    storage.write_bytes(page, encoded(as_markdown(result, against)))
    if not result.passed:
        Registry(registry, name).decide(key, "stopped", result.reasons)
        print(f"the model is not promoted; it stays among this run's artifacts, and {against} stays what it was")
    outcome = "kept zero-shot" if result.outcome == ZERO_SHOT else "passed" if result.passed else "stopped"
    return result, {**facts, "outcome": outcome, "reasons": result.reasons}


def promote(
    bundle: str,
    onnx: str,
    details: str,
    decision: str,
    registry: str,
    name: str,
    key: str,
    champion: str,
    output: str,
) -> dict[str, Any]:
    """Promotes, remembers that this data was decided on, and writes down where the version lies."""
    metrics = storage.join(details, "metrics.json")
    latest = run(
        "promote", model=bundle, onnx=onnx, metrics=metrics, decision=decision, registry=registry, name=name,
        champion=champion,
    )  # fmt: skip
    place = Registry(registry, name)
    place.decide(key, f"promoted as {latest.version}", read_json(decision, "--decision")["reasons"])
    facts = {"version": latest.version, "registry": place.place(latest.version), **model_facts(bundle, details)}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(facts, indent=1))
    return facts


def model_facts(bundle: str, details: str) -> dict[str, Any]:
    """Metadata of a model artifact: accuracy where there are labels, the data's and the code's revision."""
    metrics = read_json(storage.join(details, "metrics.json"), "metrics")
    top1 = metrics["adapted"].get("top1")
    return plain(origin(bundle) | {"accuracy": top1})
