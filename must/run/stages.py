"""What the pipeline's stages do, each in a process of its own (supervise.py): what goes in and out fits into JSON."""

from __future__ import annotations

from typing import Any

from must import storage
from must.cli import call, run
from must.run import classifiers, evaluation, promotion
from must.run.decision import decide
from must.run.inputs import look
from must.run.notes import noted
from must.run.settings import sharding_settings, training_settings


def inputs(work_uri: str, **values: Any) -> str:
    """Returns a sha256 of what class file and model hold. `values`: the run's parameters."""
    with noted(work_uri, "inputs") as note:
        result = call("inputs", look, values)
        note.result = "as the stages take them"
    return result


def shard(work_uri: str, index: str, settings: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns the index's sha256 and what its artifact tells. `own`: the pipeline's parameters of `must shard`."""
    shards = storage.join(work_uri, "shards")
    with noted(work_uri, "shard") as note:
        result = run("shard", **call("shard", sharding_settings, settings, own | {"output": shards}))
        count = sum(one.samples for one in result.shards)
        note.result = f"{count:,} images, revision {result.revision}"
        storage.write_bytes(index, storage.read_bytes(storage.join(shards, "index.json")))
    return {"sha256": result.sha256, "facts": {"shards": shards, "revision": result.revision, "images": count}}


def classifier(
    work_uri: str, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> dict[str, Any]:
    """Returns the classifier file's sha256, its number of classes and whether an earlier run had made it."""
    with noted(work_uri, "classifier") as note:
        made = call("classifier", classifiers.provide, work_uri, fingerprint, classes, model, pretrained, weights)
        note.result = f"{made['classes']} classes" + (", made by an earlier run" if made["kept"] else "")
    return made


def champion(
    work_uri: str,
    registry: str,
    model_name: str,
    index_sha256: str,
    classifier: str,
    preset: str,
    settings: dict[str, Any],
    epochs: int,
    warm_start: bool,
    only_new: bool,
) -> dict[str, Any]:
    """Returns must.promote.champion.Champion as a dictionary."""
    from must.promote.champion import champion as ask

    with noted(work_uri, "champion") as note:
        values = training_settings(settings, preset, epochs)
        best = call("champion", ask, registry, model_name, index_sha256, classifier, values, warm_start, only_new)
        note.result = "; ".join(best.reasons)
        note.facts = {"action": best.action, "why": best.reasons[-1].removeprefix("nothing new: ")}
        print(note.result)
    return vars(best)


def evaluate(
    work_uri: str, index_sha256: str, bundle: str, classifier: str, split: str, details: str, report: str
) -> dict[str, Any]:
    """Returns the metrics."""
    with noted(work_uri, "evaluate") as note:
        metrics = evaluation.evaluate(work_uri, index_sha256, bundle, classifier, split, details, report)
        note.result = evaluation.headline(metrics)
        note.facts = evaluation.accuracy(metrics) | {"report": evaluation.keep_report(work_uri, report)}
    return metrics


def gate(
    work_uri: str,
    bundle: str,
    details: str,
    registry: str,
    model_name: str,
    key: str,
    champion: str,
    champion_uri: str,
    gate: str,
    settings: dict[str, Any],
    split: str,
    decision: str,
    page: str,
) -> bool:
    """Returns whether the model passed."""
    with noted(work_uri, "gate") as note:
        result, note.facts = call(
            "gate", decide, work_uri, bundle, details, registry, model_name, key, champion, champion_uri, gate,
            settings, split, decision, page,
        )  # fmt: skip
        note.result = f"{note.facts['outcome']} ({result.gate})"
    return result.passed


def export(work_uri: str, index_sha256: str, bundle: str, details: str, onnx: str, precision: str) -> dict[str, Any]:
    """Returns what the ONNX artifact tells of the model."""
    with noted(work_uri, "export") as note:
        run(
            "export", model=bundle, output=onnx, precision=precision, shards=storage.join(work_uri, "shards"),
            index_sha256=index_sha256, metrics=storage.join(details, "metrics.json"),
        )  # fmt: skip
        note.result = f"ONNX, {precision}"
    return {"precision": precision, "framework": "onnx", **promotion.model_facts(bundle, details)}


def promote(work_uri: str, **values: Any) -> dict[str, Any]:
    """Returns where the version lies and what it is; `values` are those of promotion.promote."""
    with noted(work_uri, "promote") as note:
        facts = call("promote", promotion.promote, **values)
        note.result, note.facts = f"promoted as {facts['version']}", {"version": facts["version"]}
    return facts
