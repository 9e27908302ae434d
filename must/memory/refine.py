"""The stage `must refine`: one pass over the unlabeled images gives them better labels, and the model a memory of them.

Both come from label propagation (propagate.py) of the model's own predictions, corrected by people's answers if there
are any. Nothing is trained.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must import __version__
from must.answers.answers_file import hash_answers, read_answers
from must.answers.estimate import SET, describe_classes
from must.answers.population import KeptLabels, write_kept
from must.base import storage
from must.base.errors import UserError
from must.base.lock import HeldError
from must.base.parameters import require
from must.base.storage import exists, join
from must.base.text import NONE_OF_THESE, encode_utf8, escape_cell, format_csv, pluralize
from must.config import RefineConfig
from must.config.work import (
    ADAPTED,
    CHECKPOINTS,
    COPIES_FILE,
    DESCRIPTION_FILE,
    FOLDERS_FILE,
    PREDICTIONS_FILE,
    REFINED_FILE,
    VERSION_FILE,
    outdate_report,
)
from must.data.loader import EvalSource
from must.memory.features import Features, Pool, read_features
from must.memory.folders import find_misplaced
from must.memory.measure import (
    NEVER,
    Answers,
    Measured,
    find_answers,
    keep_labels,
    measure_answers,
)
from must.memory.predictions import Guesses, TopLabels, compare_predictions
from must.memory.propagate import build_memory, find_neighbours, look_up
from must.model.bundle import (
    Bundle,
    change_alpha,
    load_bundle,
    make_zero_shot_bundle,
    save_bundle,
)
from must.model.classifier import load_text_classifier
from must.model.description import (
    Description,
    Selection,
    get_preprocess,
    keep_levels,
    load_description,
    require_classes,
)
from must.model.distributed import init_distributed
from must.model.masked_vit import MaskedViT
from must.model.memory import Memory, Neighbours

logger = logging.getLogger(__name__)

LACKING, NAMES_SHOWN = 0.5, 9  # a class that is held (must/model/memory.py) by less is named


@dataclass(frozen=True)
class RefineResult:
    """Labels of N images: of the zero-shot model, the model, and refined; the memory; what the answers measured."""

    zero_shot: TopLabels
    model: TopLabels
    labels: TopLabels
    memory: Memory
    measured: Measured | None
    answered: Tensor  # int64 [R], the rows of answered images
    likely: Tensor  # int64 [N, 2], the most probable classes; one where there is only one
    near: Neighbours  # groups of near copies
    kept: KeptLabels | None  # accepted for the promise of the set, now or at an earlier look

    @property
    def accepted(self) -> np.ndarray | None:
        """Bool [N]: labels that nobody has to look at, and those that people gave; None: nothing is promised."""
        if self.measured is None or not (self.measured.accepted.accepted or not self.measured.accepted.left):
            return None
        accepted = self.measured.marked.copy()
        accepted[self.answered.numpy()] = True
        return accepted

    def describe_classes(self, classes: list[str]) -> list[dict[str, Any]]:
        """As of estimate.py; [] without answers."""
        if self.measured is None:
            return []
        others = self.measured.others
        accepted, labels = None if self.accepted is None else self.accepted[others], self.labels.labels.numpy()[others]
        return [
            row for _, row in describe_classes(classes, labels, accepted, self.measured.labels, self.measured.truth)
        ]


def refine(config: RefineConfig) -> dict[str, Any]:
    """Writes the model with its memory to --model, and predictions.csv, one row per image, copies.csv and refined.json
    to OUTPUT, and folders.csv if they lie in folders of classes; returns the content of refined.json."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the weights that only training uses
        classifier = load_text_classifier(config.classifier)
        zero_shot = make_zero_shot_bundle(classifier)
    require(
        not exists(join(config.model.rstrip("/").rpartition("/")[0] or ".", VERSION_FILE)),
        f"--model {config.model}: is a version of a registry, which stays as promoted; give a copy of the bundle",
    )
    bundle, before = load_model(config, zero_shot), hash_weights(config.model)
    answers_sha256 = hash_answers(config.answers)  # first: an answer that comes meanwhile is not taken for a used one
    given = read_answers(config.answers) if config.answers else {}
    with init_distributed(config.device, timeout=600) as world:
        require(world.size == 1, "must refine runs in one process")
        source = EvalSource.open(config, get_preprocess(bundle.description))
        bundle = replace(bundle, description=keep_levels(bundle.description, source.index.levels))

        def read(model: MaskedViT) -> Features:
            return read_features(model, source, world, config.features, config.limit)

        if config.alpha != "auto":
            bundle = change_alpha(config.model, float(config.alpha), bundle, zero_shot)
        trained, features = bool(bundle.description.provenance.config), read(bundle.model)
        others = [read(zero_shot.model)] if trained else []
        pool = features.pool(
            bundle.model, [one.probabilities(zero_shot.model) for one in others],
            source.reader.sources(features.numbers),
        )  # fmt: skip
        answers = find_answers(config, given, bundle.description.classes, features)
        refined = refine_pool(
            pool, answers, world.device, config.memory_images, config.risk,
            config.promise,
        )  # fmt: skip
    if answers.known.any():
        refined.memory.answered = torch.from_numpy(answers.contents[answers.known].view(np.int64))
    similarity = look_up(refined.memory, pool)[1]
    if hash_weights(config.model) != before:
        raise HeldError(
            f"--model {config.model}: another program has written a model there meanwhile, which stays; run this again"
        )
    description = add_findings(bundle.description, refined, source.index.sha256)
    outdate_report(config.model)
    description = save_bundle(config.model, bundle.model, description, refined.memory)
    if refined.kept not in (None, answers.kept) and not storage.is_remote(config.answers):
        with suppress(OSError, UserError):  # answers of others, which are not written to
            write_kept(config.answers, refined.kept, description.classes)
    summary = summarize(description, refined) | {
        "undecodable": features.undecodable,
        "answers": int(answers.known.sum()),
        "answers_sha256": answers_sha256,
        "index_sha256": source.index.sha256,  # of the shards
        "classifier_sha256": classifier.identity,
        "towers": [one.tower for one in (features, *others)],  # whose features were used
        "config": config.to_dict(),
    }
    images, rows = features.find_rows()
    names = source.reader.sources(images)
    order = source.reader.sort_as_source(images.tolist(), names)
    names, rows = [names[n] for n in order], rows[order]
    who = {int(sha256[:16], 16): f"person: {one.who}" if one.who else "person" for sha256, one in given.items()}
    people = [escape_cell(who[int(answers.contents[row])]) if answers.known[row] else "model" for row in rows]
    misplaced = find_misplaced(pool, refined.near, answers.said, names, rows, description.classes, people)
    summary["folders"] = misplaced and misplaced[0]
    columns = {"similarity": [f"{value:.4f}" for value in similarity[rows].tolist()]}
    table = write_predictions(names, rows, description.classes, refined, trained, people, columns)
    storage.write_bytes(join(config.output, PREDICTIONS_FILE), table)
    storage.write_bytes(join(config.output, COPIES_FILE), write_copies(names, rows, pool, refined.near))
    if misplaced:
        storage.write_bytes(join(config.output, FOLDERS_FILE), misplaced[1])
    else:
        storage.delete(join(config.output, FOLDERS_FILE))
    storage.write_bytes(join(config.output, REFINED_FILE), encode_utf8(json.dumps(summary, indent=1) + "\n"))
    print_summary(config, summary, refined, description)
    return summary


def add_findings(description: Description, refined: RefineResult, index_sha256: str) -> Description:
    """The model's description with what was measured and found. `index_sha256`: of the shards."""
    origin, measured = description.provenance, refined.measured
    selection = origin.selection or Selection(alpha=1.0 if origin.config else 0.0)
    check = compare_predictions(refined.zero_shot, refined.labels, description.classes)
    accuracy, unsure = (measured.accuracy, measured.abstention) if measured else (None, None)
    origin = replace(origin, selection=replace(selection, check=check, measured=accuracy, abstention=unsure))
    if not origin.config:  # else the images that it was trained on
        origin = replace(origin, index_sha256=index_sha256)
    return replace(description, provenance=origin)


def summarize(description: Description, refined: RefineResult) -> dict[str, Any]:
    """What refined.json says of the labels."""
    return {
        "must_version": __version__,
        "weights_sha256": description.weights_sha256,  # of --model
        "images": len(refined.labels.labels),
        "changed": round(float((refined.labels.labels != refined.zero_shot.labels).float().mean()), 4),
        "accepted": refined.measured and refined.measured.accepted.to_dict(),
        "classes": refined.describe_classes(description.classes),
    }


def print_summary(
    config: RefineConfig, summary: dict[str, Any], refined: RefineResult, description: Description
) -> None:
    measured, facts, answers = refined.measured, refined.memory.facts, summary["answers"]
    similar = summary["images"] - len(refined.near.first)
    logger.info(
        f"refined labels of {summary['images']:,} images, {summary['changed']:.1%} other than zero-shot's"
        f"{', using ' + pluralize(answers, 'answer') if answers else ''} -> {config.output}\n"
        f"{measured.accuracy.text() + chr(10) + measured.accepted.text() + chr(10) if measured else ''}"
        f"{measured.none + chr(10) if measured and facts.none else ''}"
        f"{summary['folders']['text'] + chr(10) if summary['folders'] else ''}"
        f"a memory of {facts.images:,} images"
        f"{f'; {similar:,} are too similar to others to vote beside them' if similar else ''}"
        f" -> {config.model}"
    )
    if lacking := describe_lacking(refined.memory, description.classes):
        logger.info(lacking)
    selection = description.provenance.selection
    for warning in selection.check.warnings if selection and selection.check else ():
        logger.warning(f"warning: {warning}")


def describe_lacking(memory: Memory, classes: list[str]) -> str:
    """A line that names the classes of which the pool holds few images; "" if there is none."""
    lacking = [classes[k] for k in (memory.held < LACKING).nonzero().flatten().tolist()]
    names = ", ".join(lacking[:NAMES_SHOWN]) + (", ..." if len(lacking) > NAMES_SHOWN else "")
    few = f"few images, if any, show {len(lacking)} of the {len(classes)} classes ({names}): new images of them mostly"
    return f"{few} keep the model's own answer" if lacking else ""


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
    if not bundle.description.provenance.config:  # not trained: the classifier file counts
        return zero_shot
    require_classes(f"--classifier {config.classifier}", bundle.description.classes, zero_shot.description.classes)
    pixels, others = (replace(get_preprocess(one.description), levels=()) for one in (bundle, zero_shot))
    require(
        pixels == others,
        f"--model {config.model}: has other preprocessing than --classifier; give its own classifier",
    )
    return bundle


def refine_pool(
    pool: Pool, answers: Answers, device: torch.device, limit: int, risk: float, promise: str = SET,
    near: Neighbours | None = None,
) -> RefineResult:  # fmt: skip
    """`limit`: images of the memory at most."""
    near = near or find_neighbours(pool, device)

    def remember(taught: np.ndarray) -> tuple[Memory, Tensor]:
        return build_memory(pool, answers.teach(taught), device, limit, near)

    memory, refined = remember(answers.known)
    zero_shot = pool.others[0] if len(pool.others) else pool.probabilities
    before = TopLabels.from_probabilities(zero_shot)
    labels, measured = measure_answers(pool, answers, before, Guesses.of(refined), remember, risk, promise)
    kept = None
    if measured and promise == SET:
        measured, kept = keep_labels(answers, labels, measured)
    if memory.facts.none:
        memory.facts = replace(memory.facts, none_margin=measured.margin if measured else NEVER)
    return RefineResult(
        before,
        TopLabels.from_probabilities(pool.probabilities),
        labels,
        memory,
        measured,
        answers.teach(answers.known)[0],
        refined.topk(2 if refined.shape[1] > 1 else 1).indices.expand(-1, 2),
        near,
        kept,
    )


def write_predictions(
    sources: list[str], rows: np.ndarray, classes: list[str], refined: RefineResult, trained: bool,
    people: list[str], more: dict[str, list[str]] | None = None,
) -> bytes:  # fmt: skip
    """Columns: image, refined class and its probability, `by` whom ("model", "person" or "person: NAME"), then class
    and probability of the zero-shot model and, where it was trained, of the model without its memory; `accepted`, true
    or false, where something can be promised.

    The class is "none of these" where a person answered that the image shows none of the classes, and where that is
    most probable. `rows`: int64, of each image, that of its picture; `people`: the cells `by`; `more`: further columns.
    """
    names, columns = [*map(escape_cell, classes), NONE_OF_THESE], {"image": [escape_cell(source) for source in sources]}

    def add(name: str, column: str, predicted: TopLabels) -> None:
        pairs = list(zip(predicted.labels[rows].tolist(), predicted.confidence[rows].tolist(), strict=True))
        columns[name] = [names[label] for label, _ in pairs]
        columns[column] = [f"{probability:.6f}" for _, probability in pairs]

    add("class", "probability", refined.labels)
    columns["by"] = people
    add("zero_shot", "zero_shot_probability", refined.zero_shot)
    if trained:
        add("without_memory", "without_memory_probability", refined.model)
    if refined.accepted is not None:
        columns["accepted"] = [str(bool(accepted)).lower() for accepted in refined.accepted[rows]]
    columns |= more or {}
    return format_csv([list(columns), *map(list, zip(*columns.values(), strict=True))])


def write_copies(sources: list[str], rows: np.ndarray, pool: Pool, near: Neighbours) -> bytes:
    """Columns: group, image, cosine: the images of each group of several near copies; `cosine` to the picture that
    votes for the group, 1 for copies of it. `rows`: int64, of each image, that of its picture."""
    groups, vectors = near.groups.cpu()[rows], F.normalize(pool.vectors.float(), dim=1)
    several = (groups.bincount()[groups] > 1).nonzero().flatten()
    names = {group: number for number, group in enumerate(dict.fromkeys(groups[several].tolist()), 1)}
    cosines = (vectors[rows[several.numpy()]] * vectors[near.first.cpu()[groups[several]]]).sum(1).tolist()
    lines = [
        (names[int(groups[place])], -cosine, escape_cell(sources[place]))
        for place, cosine in zip(several.tolist(), cosines, strict=True)
    ]
    return format_csv(
        [["group", "image", "cosine"], *([group, name, f"{-far:.4f}"] for group, far, name in sorted(lines))]
    )
