"""The pipeline's stages, one function each. Each runs in its own process (supervise.py).

A component passes the function itself to `supervised`, so that a type checker can check the arguments. They raise the
library's exceptions. A stage without special facts for its note needs no function here: `library` runs it.
"""

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from must.api.stages import call
from must.base import storage
from must.base.files import CLASSIFIER_FILE, INDEX_FILE, METRICS_FILE, MODEL_FOLDER_FILE
from must.base.parameters import require
from must.base.records import make_record
from must.base.text import encoded
from must.config.defaults import list_parts
from must.data.format.index import Index, load_index
from must.deploy.promote.promote import version_name
from must.deploy.promote.registry import Latest, Registry, is_version_of
from must.evaluation.gate import NOTHING_KEPT, Decision, against_champion, as_markdown, read_decision
from must.evaluation.result import read_metrics
from must.method.model.classifier import read_header
from must.method.model.description import load_description
from must.method.model.hub import OPEN_CLIP_WEIGHTS
from must.method.train.recipe import run_key
from must.runtime.check import sharding_settings, training_settings
from must.runtime.evaluation import accuracy, evaluate, plain
from must.runtime.inputs import check_inputs, inputs_fingerprint
from must.runtime.notes import Facts, stage_note
from must.runtime.outcome import NOTHING_NEW
from must.runtime.places import WorkUri
from must.runtime.training import decision_key, origin, train


def part_name(stage: str, part: str) -> str:
    """The name of the note of part I/N of a stage."""
    return f"{stage}-{part.replace('/', '-of-')}"


def follow_ups(predict_pods: int, serve: str) -> list[str]:
    """The names of the notes of the stages after a promotion."""
    parts = [part_name("predict", part) for part in list_parts(predict_pods)]
    return parts + ["serve"] * (serve != "none")


def shard_part(
    work_uri: str, *, part: str, source: str, test_source: str, labels: str, split: str, append: bool,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Packs one part of the images; the stage `shard` makes the shards of all parts."""
    inputs = {"source": source, "test_source": test_source, "labels": labels, "split": split, "append": append}
    values = sharding_settings(settings, inputs | {"output": WorkUri(work_uri).shards})
    with stage_note(work_uri, part_name("shard", part)) as note:
        call("shard", **values, part=part)
        note.result = "done"


__all__ = [
    "champion", "classifier", "evaluate", "export", "gate", "inputs", "library", "predict", "promote", "shard",
    "shard_part", "train",
]  # fmt: skip
logger = logging.getLogger(__name__)


def library(work_uri: str, *, stage: str, values: dict[str, Any], part: str = "") -> None:
    """Runs the library's stage of that name; the stage itself checks its parameters `values`.

    The note's result lists the numbers that the stage returns.
    """
    with stage_note(work_uri, part_name(stage, part) if part else stage) as note:
        result = call(stage, **values)
        numbers = result.items() if isinstance(result, dict) else ()
        note.result = ", ".join(f"{name} {value:,}" for name, value in numbers if isinstance(value, int | float))


def inputs(work_uri: str, *, parameters: dict[str, Any]) -> str:
    """Checks the run's `parameters`; returns a sha256 of the contents of class file and model."""
    with stage_note(work_uri, "inputs") as note:
        pods = int(parameters.get("predict_pods", 0))
        note.facts = Facts(then=follow_ups(pods, parameters.get("serve", "none")))
        result = check_inputs(parameters, work_uri)
        note.result = "as the stages take them"
    return result


@dataclass(frozen=True)
class Sharded:
    """The index's sha256, the shards' URI, the index's revision, and the number of images."""

    sha256: str
    shards: str
    revision: int
    images: int


def shard(
    work_uri: str, *, index: str, source: str, test_source: str, labels: str, split: str, append: bool,
    settings: dict[str, Any],
) -> Sharded:  # fmt: skip
    """Makes the shards; after parallel parts, those of all parts."""
    uri = WorkUri(work_uri).shards
    inputs = {"source": source, "test_source": test_source, "labels": labels, "split": split, "append": append}
    with stage_note(work_uri, "shard") as note:
        result = call("shard", **sharding_settings(settings, inputs | {"output": uri}))
        count = sum(shard.samples for shard in result.shards)
        note.result = f"{count:,} images, revision {result.revision}"
        storage.write_bytes(index, storage.read_bytes(storage.join(uri, INDEX_FILE)))
    return Sharded(result.sha256, uri, result.revision, count)


CLASSIFIER_JSON = "classifier.json"


@dataclass(frozen=True)
class ClassifierRecord:
    """`classes`: their number; `reused`: whether an earlier run made the file."""

    sha256: str
    classes: int
    model_folder: str
    reused: bool = False


def classifier(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> ClassifierRecord:  # fmt: skip
    """Writes the classifier file to `weights`: a copy of the file that an earlier run made of the same inputs, if that
    is intact, else a new one; its model is written to WORK_URI/models.

    The orchestrator's cache is not enough: it does not notice that a rule of the bucket has deleted an artifact.
    `fingerprint`: a hash of the contents of class file and model; '' to compute it.
    """
    work = WorkUri(work_uri)
    with stage_note(work_uri, "classifier") as note:
        folder = work.classifier(fingerprint or inputs_fingerprint(classes, model, pretrained))
        if (record := cached_classifier(folder, weights)) is not None:
            note.result = f"{record.classes} classes, made by an earlier run"
            return record
        file = storage.join(folder, CLASSIFIER_FILE)  # `weights` is a path of the orchestrator, without an extension
        result = call(
            "classifier", classes=classes, model=model, pretrained=pretrained, output=file, model_store=work.models,
        )  # fmt: skip
        data = storage.read_bytes(file)
        storage.write_bytes(weights, data)
        record = ClassifierRecord(hashlib.sha256(data).hexdigest(), len(result.classes), result.model_folder)
        # written last: a folder without it is incomplete
        storage.write_bytes(storage.join(folder, CLASSIFIER_JSON), json.dumps(asdict(record)).encode())
        note.result = f"{record.classes} classes"
    return record


def cached_classifier(folder: str, weights: str) -> ClassifierRecord | None:
    """Copies the cached file to `weights`; None if it or its model is missing, or does not match the record."""
    try:
        record = make_record(ClassifierRecord, json.loads(storage.read_bytes(storage.join(folder, CLASSIFIER_JSON))))
        data = storage.read_bytes(storage.join(folder, CLASSIFIER_FILE))
    except (FileNotFoundError, ValueError):
        return None
    model = [storage.join(record.model_folder, name) for name in (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS)]
    if hashlib.sha256(data).hexdigest() != record.sha256 or not all(map(storage.exists, model)):
        return None
    storage.write_bytes(weights, data)
    return replace(record, reused=True)


@dataclass(frozen=True)
class Champion:
    version: str  # 'none' before the first promotion
    bundle: str  # URI of the model to compare with; '' if there is none, or it has other classes
    key: str  # of this run's data, settings and answers
    split: str  # on which the run evaluates
    action: str  # train, or nothing new


def champion(
    work_uri: str, *, registry_uri: str, name: str, index_sha256: str, classifier: str, preset: str,
    settings: dict[str, Any], epochs: int, only_new: bool, gate: str, evaluate_split: str = "", answers: str = "",
) -> Champion:  # fmt: skip
    """Reads the registry, which may be empty, and checks before the training that the run can be evaluated.

    Args:
        only_new: do not train if there is a decision on a run with the same data, classes, settings and answers.
        evaluate_split: '' for test, or for train if the shards have no split test.
    """
    work = WorkUri(work_uri)
    models = Registry(work.registry(registry_uri), name)
    with stage_note(work_uri, "champion") as note:
        split = choose_split(load_index(work.shards, index_sha256), evaluate_split, gate)
        latest = models.latest().version
        key = decision_key(run_key(index_sha256, classifier, training_settings(settings, preset, epochs)), answers)
        decided = models.decision(key) if only_new else None
        bundle = models.bundle(latest) if latest else ""
        note.result = f"champion: {latest or 'none yet'}; evaluates on {split}"
        if bundle and read_header(classifier)["classes"] != load_description(bundle).classes:
            bundle = ""
            note.result += "; it has other classes, so the model is compared with zero-shot only"
        if decided:
            why = f"this data with these settings was {decided['outcome']} on {decided['at'][:10]}"
            note.facts = Facts(action=NOTHING_NEW, why=why)
            note.result += f"; nothing new: {why}"
        logger.info(note.result)
    return Champion(latest or "none", bundle, key, split, NOTHING_NEW if decided else "train")


def choose_split(index: Index, name: str, gate: str) -> str:
    """Raises ValueError: no such split, or the gate needs labels and the split has none."""
    split = name or ("test" if "test" in index.splits else "train")
    index.list_shards(split)
    require(
        gate != "labelled" or index.splits[split]["labelled"] > 0,
        f"gate labelled: the split {split} has no labels; give test_source and labels, or gate: auto",
    )
    return split


def gate(
    work_uri: str, *, bundle: str, details: str, registry_uri: str, model_name: str, key: str, champion: str,
    champion_uri: str, gate: str, settings: dict[str, Any], split: str, decision: str, page: str,
) -> Literal["promote", "stop"]:  # fmt: skip
    """The stage. If there is a champion, the model is also evaluated against it, and must pass that gate too.

    The champion itself is compared with the zero-shot model only, so that a run that failed after promotion can resume;
    so is a model whose classes are not the champion's.
    `champion_uri`: '' if there is no champion, or one with other classes.
    """
    metrics, facts, against = storage.join(details, METRICS_FILE), Facts(), "the zero-shot model"
    with stage_note(work_uri, "gate") as note, tempfile.TemporaryDirectory() as folder:
        replaces, champion_metrics = champion != "none", ""
        if replaces and is_version_of(champion, version_name(bundle, load_description(bundle))):
            replaces, champion_uri = False, ""
            against += f", because this model is the champion, {champion}"
        elif replaces and not champion_uri:
            facts = Facts(against=f"the champion, {champion}")
            against += f", because the champion, {champion}, has other classes"
        elif champion_uri and gate != "none":
            champion_metrics = evaluate_against(work_uri, bundle, champion_uri, metrics, split, folder)
            before = accuracy(read_metrics(champion_metrics, "metrics")).get("before")
            facts = Facts(against=f"the champion, {champion}", before=before)
            against = facts.against
        compared = champion_metrics if champion_metrics and gate == "labelled" else metrics
        result: Decision = call("gate", metrics=compared, model=bundle, gate=gate, output=decision, **settings)
        if replaces and gate in ("auto", "label-free"):
            by_champion = call("gate", metrics=champion_metrics, gate=gate, **settings) if champion_metrics else None
            result = against_champion(result, by_champion)
            storage.write_bytes(decision, result.to_json())
        storage.write_bytes(page, encoded(as_markdown(result, against)))
        if not result.passed:
            registry = Registry(WorkUri(work_uri).registry(registry_uri), model_name)
            registry.decide(key, "stopped", result.reasons)
            logger.info("the model is not promoted; it stays among this run's artifacts")
        outcome = "kept zero-shot" if result.outcome == NOTHING_KEPT else "passed" if result.passed else "stopped"
        note.facts = replace(facts, outcome=outcome, reasons=result.reasons)
        note.result = f"{outcome} ({result.gate}), compared with {against}"
        logger.info(note.result)
    return "promote" if result.passed else "stop"


def evaluate_against(work_uri: str, bundle: str, champion_uri: str, metrics: str, split: str, folder: str) -> str:
    """Evaluates against the champion, on the shards of the run's evaluation `metrics`; returns the path of the new
    metrics."""
    index_sha256 = read_metrics(metrics, "metrics").data.index_sha256
    call(
        "evaluate", model=bundle, baseline=champion_uri, shards=WorkUri(work_uri).shards, index_sha256=index_sha256,
        split=split, output=folder,
    )  # fmt: skip
    return storage.join(folder, METRICS_FILE)


def promote(
    work_uri: str, *, bundle: str, onnx: str, details: str, decision: str, registry_uri: str, model_name: str, key: str,
    champion: str, output: str,
) -> dict[str, Any]:  # fmt: skip
    """The stage: promotes the model, records the decision for this data, and writes the version's facts to `output`."""
    uri, metrics = WorkUri(work_uri).registry(registry_uri), storage.join(details, METRICS_FILE)
    with stage_note(work_uri, "promote") as note:
        latest: Latest = call(
            "promote", model=bundle, onnx=onnx, metrics=metrics, decision=decision, registry=uri, name=model_name,
            champion=champion,
        )  # fmt: skip
        registry = Registry(uri, model_name)
        registry.decide(key, f"promoted as {latest.version}", read_decision(decision).reasons)
        facts = {
            "version": latest.version,
            "registry": registry.make_uri(latest.version),
            **model_facts(bundle, details),
        }
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(facts, indent=1))
        again = latest.version == champion
        note.result = f"{latest.version} is the champion already" if again else f"promoted as {latest.version}"
        note.facts = Facts(action=NOTHING_NEW if again else "", version=latest.version)
    return facts


def model_facts(bundle: str, details: str) -> dict[str, Any]:
    """Metadata of a model artifact: accuracy, if there are labels, and the revisions of data and code."""
    metrics = read_metrics(storage.join(details, METRICS_FILE), "metrics")
    return plain(origin(bundle) | {"accuracy": accuracy(metrics).get("top1")})


def export(
    work_uri: str, *, index_sha256: str, bundle: str, details: str, onnx: str, precision: str, embeddings: bool
) -> dict[str, Any]:
    """Returns the metadata of the ONNX artifact."""
    with stage_note(work_uri, "export") as note:
        call(
            "export", model=bundle, output=onnx, precision=precision, embeddings=embeddings, index_sha256=index_sha256,
            shards=WorkUri(work_uri).shards, metrics=storage.join(details, METRICS_FILE),
        )  # fmt: skip
        note.result = f"ONNX, {precision}" + (", with embeddings" if embeddings else "")
    return {"precision": precision, "framework": "onnx", **model_facts(bundle, details)}


def predict(
    work_uri: str, *, part: str, index_sha256: str, onnx: str, output: str, settings: dict[str, Any]
) -> None:  # fmt: skip
    """`settings`: other parameters of `must predict`."""
    inputs = {"model": onnx, "shards": WorkUri(work_uri).shards, "index_sha256": index_sha256, "output": output}
    library(work_uri, stage="predict", values={**settings, **inputs, "part": part}, part=part)
