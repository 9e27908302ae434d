"""The stages of the pipeline, one function each; labelling.py has those of the second one. Each runs in its own process
(supervise.py).

The rows of must/table.py name them. A function's parameters and its docstring are the component's; it gets the stage's
Facts, which it fills, raises the library's exceptions, and returns {output's name: value, or an artifact's metadata} in
JSON."""

import hashlib
import json
import logging
import os
import tempfile
from typing import Any

from must.answers.answers_file import hash_answers
from must.api.run import run
from must.base import storage
from must.base.errors import UserError
from must.base.lock import RUN_ID
from must.base.parameters import normalize_names, require
from must.base.text import encode_utf8, pluralize
from must.config import GateConfig
from must.config.work import CLASSIFIER_FILE, INDEX_FILE, METRICS_FILE, MODEL_FOLDER_FILE, REPORT_FILE, Workspace
from must.data.format import load_index
from must.evaluation.gate import Decision, compare_with_champion, read_decision, refuse_again, write_markdown
from must.evaluation.result import Metrics, read_metrics
from must.model.classifier import load_text_classifier, read_header
from must.model.description import load_description
from must.model.hub import OPEN_CLIP_WEIGHTS
from must.pods.check import check_fit, hash_inputs, make_sharding_settings, make_training_settings
from must.pods.notes import NOTHING_NEW, Facts
from must.pods.summary import write_good_page
from must.pods.training import keep_plain, read_origin
from must.registry.promote import Latest, OtherOnnxError, Registry, make_version_name
from must.training.recipe import run_key

logger = logging.getLogger(__name__)


def shard(facts: Facts, work_uri: str, *, index: str, **values: Any) -> dict[str, Any]:
    """Packs images into WebDataset shards below work_uri; after parallel parts, those of all parts.

    Returns:
        index: a copy of the shards' index.
        index_sha256: names the shards; the later stages refuse others."""
    uri = Workspace(work_uri).place("shards")
    result = run("shard", output=uri, **make_sharding_settings(values))
    images = sum(shard.samples for shard in result.shards)
    facts.result = f"{images:,} images, revision {result.revision}"
    storage.write_bytes(index, storage.read_bytes(storage.join(uri, INDEX_FILE)))
    return {"index": {"shards": uri, "revision": result.revision, "images": images}, "index_sha256": result.sha256}


def shard_part(facts: Facts, work_uri: str, *, part: str, **values: Any) -> None:
    """Reads, checks and packs this part's share of the images, by a hash of their names.

    Args:
        part: I/N, such as 1/4."""
    run("shard", output=Workspace(work_uri).place("shards"), part=part, **make_sharding_settings(values))
    facts.result = "done"


def classifier(
    facts: Facts, work_uri: str, *, classes: str, model: str, weights: str, pretrained: str = "", fingerprint: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Computes the zero-shot classifier, or copies the file that an earlier run made of the same inputs, if that is
    intact. The model itself is written to WORK_URI/models.

    The orchestrator's cache is not enough: it does not notice that a rule of the bucket has deleted an artifact.

    Args:
        fingerprint: what the stage inputs returns; '' to compute it."""
    work = Workspace(work_uri)
    # `weights` is a path of the orchestrator, without an extension
    file = work.place("classifiers", fingerprint or hash_inputs(classes, model, pretrained), CLASSIFIER_FILE)
    intact = is_intact(file)
    if not intact:
        run(
            "classifier",
            classes=classes,
            model=model,
            pretrained=pretrained,
            output=file,
            model_store=work.place("models"),
        )
    header, data = read_header(file), storage.read_bytes(file)
    storage.write_bytes(weights, data)
    facts.result = f"{len(header.classes)} classes{', made by an earlier run' if intact else ''}"
    name = f"zero-shot classifier, {len(header.classes)} classes"
    made_of = {"model": model, "pretrained": pretrained, "fingerprint": fingerprint}
    return {"weights": {"display_name": name, "classes": len(header.classes), **made_of}}


def is_intact(file: str) -> bool:
    """Whether a classifier file is there and whole, and so is its model."""
    try:
        folder = load_text_classifier(file).model_folder
    except UserError:
        return False
    return all(storage.exists(storage.join(folder, name)) for name in (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS))


def champion(
    facts: Facts, work_uri: str, *, index_sha256: str, classifier: str, model_name: str, registry_uri: str = "",
    preset: str = "", settings: dict[str, Any] | None = None, epochs: int = 0, only_new: bool = False,
    gate: str = "auto", gate_settings: dict[str, Any] | None = None, evaluate_split: str = "", answers: str = "",
    processes: int = 1,
) -> dict[str, str]:  # fmt: skip
    """Reads the registry, which may be empty, and checks before the training that the run can train and be evaluated.

    Args:
        only_new: do not train if there is a decision on a run with the same data, classes, settings, answers and gate.
        evaluate_split: '' for test, or for train if the shards have no split test.
        processes: number of processes of the training, on all nodes together.

    Returns:
        action: train, or nothing new.
        version: of the champion; none before the first promotion.
        bundle_uri: of the model to compare with; '' if there is none, or it has other classes.
        key: of this run's data, settings, answers and gate.
        split: the split on which the run evaluates."""
    work = Workspace(work_uri)
    models = Registry(work.registry(registry_uri), model_name)
    index = load_index(work.place("shards"), index_sha256)
    split = evaluate_split or ("test" if "test" in index.splits else "train")
    index.list_shards(split)  # refuses one that is not there
    gate_settings = normalize_names(gate_settings or {})
    labelled, least = index.splits[split]["labelled"], GateConfig(metrics="-", **gate_settings).min_images
    require(
        gate != "labelled" or labelled >= least,
        f"gate labelled: the split {split} has {pluralize(labelled, 'labelled image')}, min_images is {least}; give "
        "test_source and labels, or gate: auto",
    )
    recipe = make_training_settings(settings or {}, preset, epochs)
    check_fit(index, work.place("shards"), split, classifier, recipe, processes)
    latest = models.latest().version
    key = run_key(index_sha256, classifier, recipe)
    if answers:
        key += f"-{hash_answers(answers)[:8]}"
    rules = json.dumps([gate, gate_settings, split], sort_keys=True).encode()
    key += f"-{hashlib.sha256(rules).hexdigest()[:8]}"
    decided = models.decision(key) if only_new else None
    bundle = models.bundle(latest) if latest else ""
    facts.result = f"champion: {latest or 'none yet'}; evaluates on {split}"
    if bundle and list(read_header(classifier).classes) != load_description(bundle).classes:
        bundle = ""
        facts.result += "; it has other classes, so the model is compared with zero-shot only"
    if decided:
        facts.action = NOTHING_NEW
        facts.why = f"this data with these settings was {decided['outcome']} on {decided['at'][:10]}"
        facts.result += f"; nothing new: {facts.why}"
    logger.info(facts.result)
    action = NOTHING_NEW if decided else "train"
    return {"action": action, "version": latest or "none", "bundle_uri": bundle, "key": key, "split": split}


def evaluate(
    facts: Facts, work_uri: str, *, index_sha256: str, bundle: str, classifier: str, details: str, report: str,
    decision: str, reasons: str, key: str, model_name: str, registry_uri: str = "", champion: str = "none",
    champion_uri: str = "", gate: str = "auto", gate_settings: dict[str, Any] | None = None, split: str = "test",
) -> dict[str, Any]:  # fmt: skip
    """Compares the adapted model with the zero-shot one on one split, labelled or not, and decides whether it may be
    promoted. It must also pass against the champion, if any.

    The champion itself is compared with the zero-shot model only, so that a run that failed after promotion can resume;
    so is a model whose classes are not the champion's.

    Args:
        key: under which a stopped model is recorded.
        champion_uri: '' if there is no champion, or one with other classes.

    Returns:
        details: the folder that `must evaluate` writes.
        report: a page, also copied to the run's notes, for the summary.
        decision: of the gate, which export and promote obey.
        reasons: the decision for people.
        top1: accuracy of the adapted model, 0..1; -1 if the split has no labels.
        figures: the numbers on Kubeflow's page.
        confusion: matrix of the adapted model; empty without labels or with too many classes."""
    work = Workspace(work_uri)
    measured = {
        "model": bundle, "shards": work.place("shards"), "index_sha256": index_sha256, "split": split,
        "features": work.place("features"),
    }  # fmt: skip
    metrics: Metrics = run("evaluate", baseline=classifier, output=details, **measured)
    page = storage.read_bytes(storage.join(details, REPORT_FILE))
    facts.report = storage.join(work.notes(os.environ.get(RUN_ID, "")), REPORT_FILE)
    for uri in (report, facts.report):
        storage.write_bytes(uri, page)
    scores = read_accuracy(metrics)
    facts.top1, facts.before = scores.get("top1"), scores.get("before")
    facts.result = "no labels" if facts.top1 is None else f"top-1 {facts.top1:.1%}"
    if len(scores) == 2:
        facts.result += f", zero-shot {facts.before:.1%}"
    registry, rules = Registry(work.registry(registry_uri), model_name), normalize_names(gate_settings or {})
    result, against = decide(facts, registry, details, measured, champion, champion_uri, {"gate": gate, **rules})
    storage.write_bytes(decision, result.to_json())
    storage.write_bytes(reasons, encode_utf8(write_markdown(result, against)))
    if not result.passed:
        registry.decide(key, result.outcome, result.reasons)
        logger.info("the model is not promoted; it stays among this run's artifacts")
    return {"top1": scores.get("top1", -1.0), "figures": list_figures(metrics), "confusion": make_confusion(metrics)}


def decide(
    facts: Facts, registry: Registry, details: str, measured: dict[str, Any], champion: str, champion_uri: str,
    rules: dict[str, Any],
) -> tuple[Decision, str]:  # fmt: skip
    """The decision, and what the model was compared with. `measured`: what `details` was measured of, as parameters of
    `must evaluate`; `rules`: of `must gate`."""
    file, by_champion, against = storage.join(details, METRICS_FILE), None, "zero-shot"
    version = make_version_name(load_description(measured["model"]))
    rules = {"model": measured["model"], **rules}
    if champion == version:
        against += f", because this model is the champion, {champion}"
    elif champion != "none":
        facts.stays = f"the champion, {champion}"
        if champion_uri and rules["gate"] != "none":
            facts.against = against = facts.stays
            with tempfile.TemporaryDirectory() as folder:
                theirs: Metrics = run("evaluate", baseline=champion_uri, output=folder, **measured)
                by_champion = run("gate", metrics=storage.join(folder, METRICS_FILE), **rules)
            facts.before = read_accuracy(theirs).get("before")
        elif not champion_uri:
            against += f", because {facts.stays}, has other classes"
    result: Decision
    if by_champion and rules["gate"] == "labelled":
        result = by_champion
    else:
        result = run("gate", metrics=file, **rules)
        result = compare_with_champion(result, by_champion) if facts.stays else result
    if version in registry.latest().rolled_back:
        result = refuse_again(result, version, registry.make_command(version))
    selection = read_metrics(file, "metrics").model.selection
    if result.gate == "answers" and selection and (by_answers := selection.decisive):
        value, low, high = (f"{100 * share:+.1f}" for share in by_answers.gain)
        facts.gain = f"{value} points over zero-shot (95%: {low} to {high}, {pluralize(by_answers.answers, 'answer')})"
    facts.outcome, facts.reasons = result.outcome, result.reasons
    facts.result += f"; {result.title}, compared with {against}"
    logger.info(facts.result)
    return result, against


def make_confusion(metrics: Metrics) -> dict[str, Any]:
    """As kfp's ClassificationMetrics has it; {} without a matrix."""
    if not (matrix := metrics.confusion.get("matrix")):
        return {}
    rows, names = [{"row": row} for row in matrix], [{"displayName": name} for name in metrics.classes]
    return {
        "confusionMatrix": {"annotationSpecs": names, "rows": rows},
        "display_name": "confusion matrix of the adapted model",
    }


def list_figures(metrics: Metrics) -> dict[str, float]:
    """The metrics of both models that are single numbers. The names put the gain first in Kubeflow's sorted table."""
    scores = read_accuracy(metrics)
    found: dict[str, Any] = {"accuracy": scores.get("top1"), "accuracy_zero_shot": scores.get("before")}
    if len(scores) == 2:
        found["accuracy_gain"] = scores["top1"] - scores["before"]
    for model, each in (("adapted", metrics.adapted), ("zero_shot", metrics.baseline)):
        found |= {f"{model}_{name}": value for name, value in (each.numbers if each else {}).items() if name != "top1"}
    return keep_plain(found)


def read_accuracy(metrics: Metrics) -> dict[str, float]:
    """Top-1 accuracy of the model (`top1`) and of its baseline (`before`), if there are labels."""
    pair = {"top1": metrics.adapted, "before": metrics.baseline}
    return {name: scores.top1 for name, scores in pair.items() if scores}


def promote(
    facts: Facts, work_uri: str, *, bundle: str, onnx: str, details: str, decision: str, run_page: str, key: str,
    model_name: str, registry_uri: str = "", champion: str = "none",
) -> dict[str, str]:  # fmt: skip
    """Copies the model to the registry and sets LATEST, unless another run has changed it; records the decision for
    this data. Nothing, if the gate stopped the model.

    Args:
        champion: the version that the model was compared with.

    Returns:
        version: the new one, or none.
        run_page: the run's summary."""
    registry, decided = Registry(Workspace(work_uri).registry(registry_uri), model_name), read_decision(decision)
    if decided.passed:
        latest, kept = add_version(registry, details, champion, model=bundle, onnx=onnx, decision=decision)
        registry.decide(key, f"promoted as {latest.version}", decided.reasons)
        again = latest.version == champion
        facts.result = f"{latest.version} is the champion already{kept}" if again else f"promoted as {latest.version}"
        facts.action, facts.version = NOTHING_NEW if again else "", latest.version
        facts.place = registry.make_uri(latest.version)
    else:
        facts.result = "nothing is promoted" + ("" if champion == "none" else f": {champion} stays")
    logger.info(facts.result)
    write_good_page(work_uri, os.environ.get(RUN_ID, ""), ("promote", facts), run_page)
    return {"version": facts.version or "none"}


def add_version(registry: Registry, details: str, champion: str, **files: str) -> tuple[Latest, str]:
    """Runs `must promote`. A champion with other ONNX files stays as it is: then a clause says so, else ''."""
    uri, _, name = registry.uri.rpartition("/")
    files |= {"metrics": storage.join(details, METRICS_FILE), "registry": uri, "name": name}
    try:
        return run("promote", champion=champion, **files), ""
    except OtherOnnxError:
        latest, version = registry.latest(), make_version_name(load_description(files["model"]))
        require(
            latest.version == version,
            f"{registry.make_uri(version)}: is there already with other ONNX files, such as of another precision; "
            "give another model_name",
        )
        return latest, (
            ", and keeps its ONNX files; those of this run, such as of another precision, need another model_name"
        )


def export(
    facts: Facts, work_uri: str, *, index_sha256: str, bundle: str, details: str, decision: str, onnx: str,
    precision: str = "fp32", embeddings: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Exports the model as ONNX with its class names and preprocessing, and checks it on images of the shards.
    Nothing, if the gate stopped the model."""
    if not read_decision(decision).passed:
        facts.result = "nothing is exported: the model is not promoted"
        return {}
    metrics = storage.join(details, METRICS_FILE)
    run(
        "export", model=bundle, output=onnx, precision=precision, embeddings=embeddings, index_sha256=index_sha256,
        shards=Workspace(work_uri).place("shards"), metrics=metrics,
    )  # fmt: skip
    facts.result = f"ONNX, {precision}" + (", with embeddings" if embeddings else "")
    origin, accuracy = read_origin(bundle), read_accuracy(read_metrics(metrics, "metrics")).get("top1")
    metadata = {"precision": precision, "framework": "onnx", **keep_plain(origin | {"accuracy": accuracy})}
    return {"onnx": metadata | {"display_name": f"adapted model {origin['sha256'][:12]} (ONNX, {precision})"}}
