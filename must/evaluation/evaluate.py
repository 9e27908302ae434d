"""The stage `must evaluate`: an adapted model against its baseline on one split, with labels or without."""

import logging
from dataclasses import replace

import numpy as np
import torch

from must import __version__
from must.answers.abstention import choose_abstention
from must.base import storage
from must.base.text import encode_utf8, escape_cell, format_csv, make_printable, pluralize
from must.config import EvaluateConfig
from must.config.work import COPIES_FILE, DESCRIPTION_FILE, METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.data.format import Index, load_index, read_hashes
from must.data.loader import EvalSource
from must.data.reader import open_reader
from must.evaluation.gate import state_verdict
from must.evaluation.metrics import Samples, Scores, measure, read_samples, score
from must.evaluation.report import render_report
from must.evaluation.result import Against, Data, Metrics, ModelRecord, RefinedLabels, make_text_table, write_metrics
from must.memory.features import Features, hash_tower, read_features
from must.model.bundle import Bundle, load_bundle, make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess, require_classes, require_same_model
from must.model.distributed import World, init_distributed

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> Metrics:
    """Writes metrics.json, predictions.csv, report.html and copies.csv to OUTPUT, prints a table, returns the metrics.

    Under torchrun every process passes its part of the images through the towers; rank 0 computes and writes the rest,
    which the others wait for."""
    refined = RefinedLabels.read(config.refined) if config.refined else None
    with init_distributed(config.device, config.timeout) as world:
        bundle = load_bundle(config.model)
        description = bundle.description
        if refined and refined.weights_sha256:
            require_same_model(f"--refined {config.refined}", refined.weights_sha256, description, "must refine")
        baseline = load_baseline(config.baseline) if config.baseline else None
        if baseline:
            require_classes(f"--baseline {config.baseline}", description.classes, baseline.description.classes)
        index = load_index(config.shards, config.index_sha256)  # fails early if there is none
        reader = open_reader(config.shards, config.split, config.index_sha256)
        samples = read_samples(reader, description.classes, config.labels == "auto")  # before any pass
        features = read_towers(config, bundle, baseline, world)
        metrics = None
        if world.is_main:
            metrics = write_report(config, refined, bundle, baseline, samples, features, index, world.device)
        return world.gather(metrics)[0]


def write_report(
    config: EvaluateConfig, refined: RefinedLabels | None, bundle: Bundle, baseline: Bundle | None, samples: Samples,
    features: list[Features], index: Index, device: torch.device,
) -> Metrics:  # fmt: skip
    """Computes all numbers and writes all files. `features`: of the model, and of the baseline."""
    description = bundle.description
    against: Against = "none"
    if baseline:
        against = "baseline" if baseline.description.provenance else "zero-shot"
    samples = samples.only(features[0].find_rows()[0])
    after = score(bundle.model, bundle.memory, features[0], samples.labels, device)
    tower = score(bundle.model, None, features[0], samples.labels, device) if bundle.memory else None
    before = score(baseline.model, baseline.memory, features[1], samples.labels, device) if baseline else None
    samples = replace(samples, answered=find_answered(samples, config, index, (bundle, baseline)))
    labelled = samples.labelled
    correct = after.prediction[labelled] == samples.labels[labelled]
    metrics = replace(
        measure(samples, after, before, tower, description.classes),
        abstention=choose_abstention(config.risk, after.confidence[labelled], correct, named=after.named[labelled]),
        baseline_name=against,
        model=ModelRecord(
            config.model, description.backbone, description.pretrained, description.logit_factor,
            description.must_version, description.weights_sha256, description.provenance.to_dict(),
        ),
        data=Data(
            config.shards, config.split, index.sha256, index.revision, index.splits, index.rejected, index.duplicates
        ),
        refined=refined.to_dict() if refined else None,
        config=config.to_dict(),
        must_version=__version__,
    )  # fmt: skip
    table = predictions_csv(samples, after, before, metrics.classes)
    storage.write_bytes(storage.join(config.output, PREDICTIONS_FILE), table)
    if refined and refined.copies:  # beside the report, which links it
        storage.write_bytes(storage.join(config.output, COPIES_FILE), refined.copies)
    write_metrics(storage.join(config.output, METRICS_FILE), metrics)
    # last: a folder with report.html has all files, and an error here leaves the numbers
    report = render_report(config, metrics, samples, after, before, refined)
    storage.write_bytes(storage.join(config.output, REPORT_FILE), encode_utf8(report))
    logger.info(f"{make_printable(state_verdict(metrics).plain)}\n\n{make_text_table(metrics)}")
    if samples.skipped:
        logger.info(f"{samples.skipped} images could not be decoded and were left out")
    if metrics.answered:
        images = pluralize(metrics.answered, "labelled image")
        logger.info(f"{images} not measured: people's answers about them are in the model")
    return metrics


def find_answered(
    samples: Samples, config: EvaluateConfig, index: Index, bundles: tuple[Bundle | None, ...]
) -> np.ndarray | None:
    """Bool [N], the images that one of the models has an answer about, by their content; None without answers."""
    answered = [bundle.memory.answered.cpu().numpy() for bundle in bundles if bundle and bundle.memory]
    if not any(len(values) for values in answered):
        return None
    contents = read_hashes(config.shards, index, config.split)[samples.numbers].view(np.int64)
    return np.isin(contents, np.concatenate(answered))


def load_baseline(uri: str) -> Bundle:
    """A bundle, or the zero-shot model of a classifier file."""
    if storage.exists(storage.join(uri, DESCRIPTION_FILE)):
        return load_bundle(uri)
    return make_zero_shot_bundle(load_text_classifier(uri, "--baseline"))


def read_towers(config: EvaluateConfig, bundle: Bundle, baseline: Bundle | None, world: World) -> list[Features]:
    """Of the model, and of the baseline. A tower that both have runs once."""
    towers: dict[str, Features] = {}

    def read(one: Bundle) -> Features:
        source = EvalSource.open(config, get_preprocess(one.description))
        key = hash_tower(one.model, source.preprocess)
        if key not in towers or one.memory:  # whose vectors must be of its own whitenings
            towers[key] = read_features(one.model, source, world, config.features, memory=one.memory, fit=False)
        return towers[key]

    return [read(one) for one in (bundle, baseline) if one]


def predictions_csv(samples: Samples, after: Scores, before: Scores | None, classes: list[str]) -> bytes:
    """One row per image: source, label, the adapted model's class and probability, and the baseline's."""
    classes = [escape_cell(name) for name in classes]
    models = {"adapted": after} | ({"baseline": before} if before else {})
    rows = [["sample", "source", "label", *(column for name in models for column in (name, f"{name}_probability"))]]
    for i, number in enumerate(samples.numbers):
        label = classes[samples.labels[i]] if samples.labels[i] >= 0 else ""
        rows.append([str(number), escape_cell(samples.sources[i]), label])
        for scores in models.values():
            rows[-1] += [classes[scores.prediction[i]], f"{scores.confidence[i]:.4f}"]
    return format_csv(rows)
