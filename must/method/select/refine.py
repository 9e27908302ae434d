"""The stage `must refine`: better labels for the unlabeled images, in seconds and without training."""

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch

from must import __version__
from must.base import storage
from must.base.files import PREDICTIONS_FILE, REFINED_FILE
from must.base.parameters import require
from must.base.text import cell, csv_of, encoded
from must.config import RefineConfig
from must.data.format.index import load_index
from must.data.loading.loader import EvalSource
from must.method.answers.review import Review
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import load_bundle, preprocess_of, require_classes, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.check import Predicted
from must.method.select.features import ImageFeatures, extract_features, subsample
from must.method.select.propagate import answer_rows, nearest, refined_probabilities, whitened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refined:
    """Labels of N images: of the zero-shot model, the adapted model (if there is one), and refined."""

    zero_shot: Predicted
    model: Predicted | None
    labels: Predicted


def refine(config: RefineConfig) -> dict[str, Any]:
    """Writes predictions.csv to OUTPUT, one row per image, then refined.json; returns the content of refined.json.
    Raises ValueError: no such split, classifier or bundle, one of other classes, or no image can be decoded."""
    zero_shot = zero_shot_bundle(load_text_classifier(config.classifier))
    classes, model, weights_sha256 = zero_shot.description.classes, None, ""
    if config.model:
        bundle = load_bundle(config.model)
        require_classes(f"--classifier {config.classifier}", bundle.description.classes, classes)
        require(
            preprocess_of(bundle.description) == preprocess_of(zero_shot.description),
            f"--model {config.model}: has other preprocessing than --classifier; give its own classifier",
        )
        model, weights_sha256 = bundle.model, bundle.description.weights_sha256
    answers = answers_of(config, classes)
    with init_distributed(config.device, timeout=600) as world:
        require(world.size == 1, "must refine runs in one process")
        source = subsample(EvalSource.of(config, preprocess_of(zero_shot.description)), config.images)
        other = model.to(world.device) if model else None
        others = (lambda images: [other(images)]) if other else None
        extracted = extract_features(zero_shot.model, source, world.device, others)
        refined = refined_labels(extracted, world.device, answers)
    summary = {
        "must_version": __version__,
        "images": len(extracted.numbers),
        "undecodable": source.skipped,
        "answers": len(answers),
        "weights_sha256": weights_sha256,  # of --model
        "changed": round(float((refined.labels.labels != refined.zero_shot.labels).float().mean()), 4),
        "config": config.to_dict(),
    }
    table = predictions_csv(extracted.sources, classes, refined)
    storage.write_bytes(storage.join(config.output, PREDICTIONS_FILE), table)
    storage.write_bytes(storage.join(config.output, REFINED_FILE), encoded(json.dumps(summary, indent=1) + "\n"))
    logger.info(
        f"{summary['images']:,} images, {summary['changed']:.1%} with another label than zero-shot's"
        f"{f', using {len(answers):,} answers' if answers else ''} -> {config.output}"
    )
    return summary


def answers_of(config: RefineConfig, classes: list[str]) -> dict[int, int]:
    """{number in the split: class number, -1 for none of the classes}."""
    if not config.answers:
        return {}
    review = Review.load(config.answers)
    review.require(classes, load_index(config.shards).sha256, f"--answers {config.answers}")
    require(review.split == config.split, f"--answers {config.answers}: is a review of the split {review.split}")
    return review.labels(config.answers)


def refined_labels(extracted: ImageFeatures, device: torch.device, answers: dict[int, int] | None = None) -> Refined:
    """The mean of the models' probabilities, corrected by answers, then propagated (propagate.py).
    `answers`: {number in the split: class number, -1 for none of the classes}."""
    values = whitened(extracted.features.to(device).float())
    mean = extracted.probabilities.float().mean(0).to(device)
    refined = refined_probabilities(*nearest(values), values, mean, answer_rows(answers or {}, extracted.numbers))
    models = [Predicted.of(probabilities) for probabilities in extracted.probabilities]
    return Refined(models[0], models[1] if len(models) > 1 else None, Predicted.of(refined.cpu()))


def predictions_csv(sources: list[str], classes: list[str], refined: Refined) -> bytes:
    """Columns: image, refined class and its confidence, then class and probability of the zero-shot and adapted models.

    The class is empty where a person answered that the image shows none of the classes.
    """
    columns: dict[str, Predicted] = {"class": refined.labels, "zero_shot": refined.zero_shot}
    if refined.model:
        columns["model"] = refined.model
    header = ["image"]
    for name in columns:
        header += [name, "confidence" if name == "class" else f"{name}_confidence"]
    names = [cell(name) for name in classes]
    values = [(predicted.labels.tolist(), predicted.confidence.tolist()) for predicted in columns.values()]
    rows = [header]
    for row, source in enumerate(sources):
        parts = []
        for labels, confidence in values:
            parts += [names[labels[row]] if confidence[row] else "", f"{confidence[row]:.6f}"]
        rows.append([cell(source), *parts])
    return csv_of(rows)
