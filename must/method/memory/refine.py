"""The stage `must refine`: one pass over the unlabeled images gives them better labels, and the model a memory of them.

Both come from label propagation (propagate.py) of the model's own predictions, corrected by people's answers if there
are any. Nothing is trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from must import __version__
from must.base import storage
from must.base.files import ADAPTED, CHECKPOINTS, DESCRIPTION_FILE, PREDICTIONS_FILE, REFINED_FILE, VERSION_FILE
from must.base.lock import HeldError
from must.base.parameters import require
from must.base.storage import exists, join
from must.base.text import NONE_OF_THESE, cell, counted, encoded, format_csv
from must.config import RefineConfig
from must.data.loading.loader import EvalSource
from must.data.shards.history import read_hashes
from must.method.answers.answers_file import NO_CLASS, hash_answers
from must.method.answers.estimate import (
    Abstention,
    Accepted,
    AccuracyEstimate,
    abstention,
    accept,
    describe_classes,
    fewest_answers,
    find_ranks,
)
from must.method.answers.population import choose_measured
from must.method.distributed.process_group import init_distributed
from must.method.memory.alpha import CANDIDATES, best_candidate, check_ends, interpolate, load_trained
from must.method.memory.answers import Answers, find_answers
from must.method.memory.build import build_memory, find_neighbours, find_similarity, predict_left_out
from must.method.memory.features import Features, read_features
from must.method.memory.names import Finding, find_missing, find_pairs
from must.method.memory.pool import Pool, Predicted, compare_predictions
from must.method.memory.propagate import answer_rows
from must.method.model.bundle import Bundle, load_bundle, save_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import Selection, get_preprocess, load_description, require_classes
from must.method.model.masked_vit import MaskedViT
from must.method.model.memory import Memory

logger = logging.getLogger(__name__)

FEWEST_ANSWERS = 20  # drawn at random; with fewer they do not choose alpha
BY_HAND = "--alpha"  # what decided an alpha that somebody gave: it stays until another is given
UNUSUAL_SHOWN = 9  # pictures
FOLDS = 5  # of the cross-validation on the answers drawn at random


@dataclass(frozen=True)
class Measured:
    """What A answers drawn at random say."""

    images: np.ndarray  # bool [N], the images that they say it about
    accuracy: AccuracyEstimate
    accepted: Accepted
    abstention: Abstention | None  # None: no threshold
    labels: np.ndarray  # int64 [A], refined labels without the image's own answer
    truth: np.ndarray  # int64 [A], the answers


@dataclass(frozen=True)
class Refined:
    """Labels of N images: of the zero-shot model, the model, and refined; the memory; what the answers measured; names
    that do not fit."""

    zero_shot: Predicted
    model: Predicted
    labels: Predicted
    memory: Memory
    measured: Measured | None
    answered: Tensor  # int64 [R], the rows of answered images
    outdated: Tensor  # int64, the rows of those whose answer does not fit the classes
    misfits: list[Finding]

    @property
    def accepted(self) -> np.ndarray | None:
        """Bool [N]: labels that can be accepted without review, and those that people gave; None: nothing can be
        promised."""
        if self.measured is None or self.measured.accepted.threshold is None:
            return None
        sure = self.labels.confidence.numpy() >= self.measured.accepted.threshold
        accepted = sure & self.measured.images
        accepted[self.outdated.numpy()] = False
        accepted[self.answered.numpy()] = True
        return accepted

    def describe_classes(self, classes: list[str], numbers: Tensor) -> list[dict[str, Any]]:
        """As of estimate.py, and `samples`: the numbers in the split of the class's surest, middle and least sure image
        without an answer; `numbers`: int64 [N], those of all images. [] without answers."""
        if self.measured is None:
            return []
        others = np.ones(len(self.labels.labels), bool)
        others[self.answered.numpy()] = others[self.outdated.numpy()] = False
        accepted = None if self.accepted is None else self.accepted[others]
        labels, surest = self.labels.labels.numpy(), np.argsort(-self.labels.confidence.numpy(), kind="stable")
        rows = describe_classes(classes, labels[others], accepted, self.measured.labels, self.measured.truth)
        numbers_of = {name: number for number, name in enumerate(classes)} | {NONE_OF_THESE: NO_CLASS}
        for row in rows:
            mine = surest[others[surest] & (labels[surest] == numbers_of[row["class"]])]
            row["samples"] = numbers[mine[np.unique([0, len(mine) // 2, len(mine) - 1])]].tolist()
        return rows


def refine(config: RefineConfig) -> dict[str, Any]:
    """Writes the model with its memory to --model, and predictions.csv, one row per image, and refined.json to OUTPUT;
    returns the content of refined.json."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the weights that only training uses
        zero_shot = zero_shot_bundle(load_text_classifier(config.classifier))
    require(
        not exists(join(config.model.rstrip("/").rpartition("/")[0] or ".", VERSION_FILE)),
        f"--model {config.model}: is a version of a registry, which stays as promoted; give a copy of the bundle",
    )
    bundle, before = load_model(config, zero_shot), hash_weights(config.model)
    answers_sha256 = hash_answers(config.answers)  # first: an answer that comes meanwhile is not taken for a used one
    answers = find_answers(config, bundle.description.classes)
    with init_distributed(config.device, timeout=600) as world:
        require(world.size == 1, "must refine runs in one process")
        source = EvalSource.open(config, get_preprocess(bundle.description))

        def read(model: MaskedViT) -> Features:
            return read_features(model, source, world, config.features, config.images)

        bundle = change_alpha(config, bundle, zero_shot, read, world.device, answers)
        trained, features = bool(bundle.description.provenance.config), read(bundle.model)
        others = [read(zero_shot.model).probabilities(zero_shot.model)] if trained else []
        pool = features.pool(bundle.model, others, source.reader.sources(features.numbers))
        answers = answers.among(pool.numbers.tolist())  # without those about images that cannot be decoded
        refined = refine_pool(
            pool, zero_shot.model.classifier.detach(), answers, world.device, config.memory_images, config.risk
        )
    if answers.known:
        contents = read_hashes(config.shards, source.index, config.split)
        refined.memory.answered = torch.from_numpy(contents[list(answers.known)].view(np.int64))
    origin, measured = bundle.description.provenance, refined.measured
    selection = origin.selection or (Selection() if origin.config else Selection(alpha=0.0, by="not trained"))
    check = compare_predictions(refined.zero_shot, refined.labels, bundle.description.classes)
    accuracy, unsure = (measured.accuracy, measured.abstention) if measured else (None, None)
    origin = replace(origin, selection=replace(selection, check=check, measured=accuracy, abstention=unsure))
    if not origin.config:  # else the images that it was trained on
        origin = replace(origin, index_sha256=source.index.sha256)
    if hash_weights(config.model) != before:
        raise HeldError(
            f"--model {config.model}: another program has written a model there meanwhile, which stays; run this again"
        )
    similarity = find_similarity(refined.memory, pool)
    description = replace(bundle.description, provenance=origin)
    description = save_bundle(config.model, bundle.model, description, refined.memory)
    misfits = [
        finding.to_dict(description.classes, pool.sources) | {"samples": pool.numbers[list(finding.rows)].tolist()}
        for finding in refined.misfits
    ]
    summary = {
        "must_version": __version__,
        "weights_sha256": description.weights_sha256,  # of --model
        "images": len(pool.numbers),
        "undecodable": features.undecodable,
        "answers": len(answers.known),
        "answers_sha256": answers_sha256,
        "changed": round(float((refined.labels.labels != refined.zero_shot.labels).float().mean()), 4),
        "accepted": measured and asdict(measured.accepted) | {"text": measured.accepted.text()},
        "classes": refined.describe_classes(description.classes, pool.numbers),
        "misfits": misfits,
        "unusual": list_unusual(pool, similarity),
        "index_sha256": source.index.sha256,  # of the shards that `samples` are in
        "config": config.to_dict(),
    }
    images, rows = features.find_rows()
    names = source.reader.sources(images)
    order = source.reader.sort_as_source(images.tolist(), names)
    columns = {"similarity": [f"{value:.4f}" for value in similarity[rows[order]].tolist()]}
    table = predictions_csv([names[n] for n in order], rows[order], description.classes, refined, trained, columns)
    storage.write_bytes(join(config.output, PREDICTIONS_FILE), table)
    storage.write_bytes(join(config.output, REFINED_FILE), encoded(json.dumps(summary, indent=1) + "\n"))
    logger.info(
        f"refined labels of {summary['images']:,} images, {summary['changed']:.1%} other than zero-shot's"
        f"{', using ' + counted(len(answers.known), 'answer') if answers.known else ''} -> {config.output}\n"
        f"{measured.accuracy.text() + chr(10) + measured.accepted.text() + chr(10) if measured else ''}"
        f"a memory of {refined.memory.facts.images:,} images -> {config.model}"
    )
    for warning in check.warnings:
        logger.warning(f"warning: {warning}")
    return summary


def list_unusual(pool: Pool, similarity: Tensor) -> list[dict[str, Any]]:
    """The pictures that are least like the others, which may show none of the classes; `samples`: the number in the
    split. `similarity`: of `find_similarity`."""
    rows = similarity.topk(min(UNUSUAL_SHOWN, len(similarity)), largest=False).indices.tolist()
    return [
        {
            "image": pool.sources[row],
            "similarity": round(float(similarity[row]), 4),
            "samples": [int(pool.numbers[row])],
        }
        for row in rows
    ]


def hash_weights(model: str) -> str:
    """The sha256 of the weights of the bundle there; "" if there is none."""
    return load_description(model).weights_sha256 if exists(join(model, DESCRIPTION_FILE)) else ""


def load_model(config: RefineConfig, zero_shot: Bundle) -> Bundle:
    """The bundle at --model, or the zero-shot one if there is none yet."""
    if not exists(join(config.model, DESCRIPTION_FILE)):
        unfinished = exists(join(config.model, ADAPTED, DESCRIPTION_FILE)) or exists(join(config.model, CHECKPOINTS))
        require(
            not unfinished,
            f"--model {config.model}: holds a training that is not finished; run the same `must train` again",
        )
        return zero_shot
    bundle = load_bundle(config.model)
    require_classes(f"--classifier {config.classifier}", bundle.description.classes, zero_shot.description.classes)
    require(
        get_preprocess(bundle.description) == get_preprocess(zero_shot.description),
        f"--model {config.model}: has other preprocessing than --classifier; give its own classifier",
    )
    return bundle if bundle.description.provenance.config else zero_shot  # not trained: the classifier file counts


def change_alpha(
    config: RefineConfig, bundle: Bundle, zero_shot: Bundle, read: Callable[[MaskedViT], Features],
    device: torch.device, answers: Answers,
) -> Bundle:  # fmt: skip
    """The bundle with the alpha that is given, or that the answers choose."""
    provenance = bundle.description.provenance
    if not provenance.config:
        require(config.alpha in ("auto", 0.0), f"--alpha: {config.model} is not trained")
        return bundle
    now = provenance.selection or Selection()
    stays = now.by == BY_HAND or len(answers.random) < FEWEST_ANSWERS
    if config.alpha == now.alpha or (config.alpha == "auto" and stays):
        return bundle
    trained = load_trained(config.model)
    check_ends(config.model, trained, zero_shot)
    if config.alpha == "auto":
        alphas = sorted({*CANDIDATES, now.alpha})
        networks = [interpolate(zero_shot.model, trained.model, alpha) for alpha in alphas]
        correct = []
        for network in networks:
            pool = read(network).pool(network)
            _, labels = build_memory(pool, answer_rows({}, pool.numbers), device)
            correct.append(labels.argmax(1)[answer_rows(answers.random, pool.numbers)[0]].numpy())
        truth = np.array([answers.random[n] for n in pool.numbers.tolist() if n in answers.random])
        choice = best_candidate(np.stack(correct) == truth, alphas.index(now.alpha))
        alpha, by = alphas[choice], f"{len(truth):,} answers"
        if alpha == now.alpha:
            return bundle
    else:
        alpha, by = float(config.alpha), BY_HAND
    if now.alpha == 1 and not exists(join(config.model, ADAPTED, DESCRIPTION_FILE)):
        save_bundle(join(config.model, ADAPTED), trained.model, trained.description)
    logger.info(f"alpha {alpha:g} ({by})")
    description = replace(bundle.description, provenance=replace(provenance, selection=Selection(alpha=alpha, by=by)))
    return Bundle(interpolate(zero_shot.model, trained.model, alpha), description)


def refine_pool(
    pool: Pool, columns: Tensor, answers: Answers, device: torch.device, limit: int, risk: float
) -> Refined:
    """`columns`: unit [D, K], the zero-shot weights of the classes; `limit`: images of the memory at most."""
    near = find_neighbours(pool, device)

    def remember(known: dict[int, int]) -> tuple[Memory, Tensor]:
        return build_memory(pool, answer_rows(known, pool.numbers), device, limit, near)

    memory, refined = remember(answers.known)
    zero_shot = pool.others[0] if len(pool.others) else pool.probabilities
    before, labels = Predicted.from_probabilities(zero_shot), Predicted.from_probabilities(refined)
    rows, given = answer_rows(answers.copies | answers.known, pool.numbers)
    labels.labels[rows], labels.confidence[rows] = given, 1.0  # copies, too
    return Refined(
        before,
        Predicted.from_probabilities(pool.probabilities),
        labels,
        memory,
        measure_answers(pool, answers, before, labels, remember, risk) if answers.random else None,
        rows,
        answer_rows({n: k for n, k in answers.random.items() if n not in answers.known}, pool.numbers)[0],
        [
            *find_missing(labels, rows, [*answers.known.values()].count(NO_CLASS)),
            *find_pairs(zero_shot.to(device), columns.to(device)),
        ],
    )


def measure_answers(
    pool: Pool,
    answers: Answers,
    zero_shot: Predicted,
    refined: Predicted,
    remember: Callable[[dict[int, int]], tuple[Memory, Tensor]],
    risk: float,
) -> Measured | None:
    """Accuracies on images that were drawn at random and answered: of zero-shot, of the model with its memory before
    any answer, and with answers, by cross-validation: an image's own answer is left out, as for a new image. So is it
    from the labels that decide which of the `refined` ones are accepted. `remember`: known answers -> the memory.
    None: nothing is measured."""
    rows, truth = answer_rows(answers.random, pool.numbers)
    by_content = rows.numpy()[answers.contents[pool.numbers[rows].numpy()].argsort()]
    sizes = np.bincount(answers.cohorts[answers.cohorts >= 0])  # as for `must review`, also where the pool is a part
    images, chosen = choose_measured(answers.cohorts[pool.numbers.numpy()], by_content, fewest_answers(risk), sizes)
    if not len(chosen):
        return None
    truth, rows = truth[torch.isin(rows, torch.from_numpy(chosen))], torch.from_numpy(np.sort(chosen))
    model = predict_left_out(remember({})[0], pool, rows)
    labels, ranks = torch.empty_like(truth), np.empty(len(rows))
    with_answers = Predicted(torch.empty_like(truth), torch.empty(len(rows)))
    others = torch.from_numpy(images.copy())
    others[answer_rows(answers.all, pool.numbers)[0]] = False
    fold = torch.arange(len(rows)) % min(FOLDS, len(rows))
    for number in range(int(fold.max()) + 1):
        mine = rows[fold == number]
        left_out = {int(pool.numbers[row]) for row in mine}
        memory, left = remember({n: label for n, label in answers.known.items() if n not in left_out})
        for values, predicted in zip(with_answers, predict_left_out(memory, pool, mine), strict=True):
            values[fold == number] = predicted
        label, confidence = Predicted.from_probabilities(left)
        labels[fold == number] = label[mine]
        ranks[(fold == number).numpy()] = find_ranks(confidence[mine].numpy(), confidence[others].numpy())
    right = [(one == truth).numpy() for one in (zero_shot.labels[rows], model.labels, with_answers.labels, labels)]
    unmeasured = int((~images).sum())
    accuracy = AccuracyEstimate.from_correct(right[0], right[1], with_answers=right[2], unmeasured=unmeasured)
    accepted = accept(risk, ranks, right[3], refined.confidence[others].numpy(), unmeasured)
    named = (with_answers.labels != NO_CLASS).numpy()
    unsure = abstention(risk, with_answers.confidence.numpy(), right[2], "answers", named)
    shown = None if unsure.threshold is None else unsure
    return Measured(images, accuracy, accepted, shown, labels.numpy(), truth.numpy())


def predictions_csv(
    sources: list[str], rows: np.ndarray, classes: list[str], refined: Refined, trained: bool,
    more: dict[str, list[str]] | None = None,
) -> bytes:  # fmt: skip
    """Columns: image, refined class and its probability, then class and probability of the zero-shot model and, where
    it was trained, of the model without its memory; `accepted`, true or false, where something can be promised.

    The class is empty where a person answered that the image shows none of the classes, and where that is most
    probable. `rows`: int64, of each image, that of its picture; `more`: further columns."""
    names, columns = [*map(cell, classes), ""], {"image": [cell(source) for source in sources]}

    def add(name: str, column: str, predicted: Predicted) -> None:
        pairs = list(zip(predicted.labels[rows].tolist(), predicted.confidence[rows].tolist(), strict=True))
        columns[name] = [names[label] for label, _ in pairs]
        columns[column] = [f"{probability:.6f}" for _, probability in pairs]

    add("class", "probability", refined.labels)
    add("zero_shot", "zero_shot_probability", refined.zero_shot)
    if trained:
        add("model", "model_probability", refined.model)
    if refined.accepted is not None:
        columns["accepted"] = [str(bool(accepted)).lower() for accepted in refined.accepted[rows]]
    columns |= more or {}
    return format_csv([list(columns), *map(list, zip(*columns.values(), strict=True))])
