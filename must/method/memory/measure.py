"""What people's answers say about the images of a split: accuracies, which labels nobody has to look at, how often a
picture gets none of the classes. The statistics are those of must/method/answers/estimate.py; here answered images are
left out."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from must.base.text import pluralize
from must.config import RefineConfig
from must.data.format import load_index, read_hashes
from must.method.answers.answers_file import NO_CLASS, OUTDATED, RANDOM, Answer, read_answers
from must.method.answers.estimate import (
    ROOM,
    SET,
    Abstention,
    Accepted,
    AccuracyEstimate,
    Sample,
    accept,
    choose_abstention,
    compute_upper_bound,
    count_fewest_answers,
    find_ranks,
)
from must.method.answers.population import (
    NOTHING_GONE,
    POPULATION_FILE,
    Gone,
    KeptLabels,
    choose_sample,
    read_kept,
    read_population,
    shorten,
)
from must.method.memory.features import Pool
from must.method.memory.predictions import TopLabels
from must.method.memory.propagate import answer_rows, look_up, predict_left_out
from must.method.model.memory import Memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """{number in the split: class number, -1 for none of the classes}; `random`: those drawn at random, also OUTDATED
    ones; `copies`: of other images with the same content as the `known` ones.

    Of the images of the split: `contents`, uint64; `measured`, bool, those that the random answers say something about.
    `measuring`: the numbers of those random answers that do."""

    known: dict[int, int]
    random: dict[int, int]
    copies: dict[int, int]
    contents: np.ndarray
    measured: np.ndarray
    measuring: frozenset[int] = frozenset()
    gone: Gone = NOTHING_GONE
    kept: KeptLabels | None = None  # of an earlier look, for the promise of the set

    def among(self, numbers: Iterable[int]) -> Answers:
        """Those about images with these numbers."""
        images = {int(number) for number in numbers}
        known, random, copies = (
            {n: k for n, k in part.items() if n in images} for part in (self.known, self.random, self.copies)
        )
        return replace(self, known=known, random=random, copies=copies)

    @property
    def all(self) -> dict[int, int]:
        """Of all images that somebody answered about."""
        return self.copies | self.random | self.known


def find_answers(config: RefineConfig, classes: list[str]) -> Answers:
    """The answers about images of the shards, which are known by their content. An answer that does not fit the classes
    teaches nothing: its class is gone, or it is "none of the classes" and one was added. About a picture drawn at
    random any label is wrong, as its image stays part of the sample; so does one that is gone, see `Gone`."""
    if not config.answers:
        return Answers({}, {}, {}, np.empty(0, np.uint64), np.empty(0, bool))
    contents = read_hashes(config.shards, load_index(config.shards), config.split)
    class_numbers = {name: number for number, name in enumerate(classes)}
    numbers = defaultdict[int, list[int]](list)
    for number, value in enumerate(contents.tolist()):
        numbers[value].append(number)
    known, random, copies, gone, unfit = dict[int, int](), dict[int, int](), dict[int, int](), 0, list[Answer]()
    drawn = list[str]()
    for sha256, answer in read_answers(config.answers).items():
        if answer.unsure:
            continue
        if answer.sampled == RANDOM:
            drawn.append(sha256)
        number, *others = numbers.get(int(sha256[:16], 16), [-1])
        if number < 0:
            gone += 1
            continue
        label = answer.find_number(class_numbers)
        if label == OUTDATED:
            unfit.append(answer)
        else:
            known[number] = label
            copies |= dict.fromkeys(others, label)
        if answer.sampled == RANDOM:
            random[number] = label
    if gone:
        logger.info(f"{pluralize(gone, 'answer')} left out: of images that are no longer there")
    if renamed := sum(answer.label is not None for answer in unfit):
        logger.warning(
            f"{pluralize(renamed, 'answer')} with a class that is no longer there: they teach nothing, and those drawn "
            "at random count as wrong; if a class has another name now, write it into answers.jsonl (docs/day-two.md)"
        )
    if earlier := len(unfit) - renamed:
        logger.warning(
            f"{pluralize(earlier, 'answer')} of none of the classes, from before a name was added: they teach nothing, "
            "and those drawn at random count as wrong, until `must review` has asked about them again"
        )
    population = read_population(config.answers)
    chosen, images, beyond = choose_sample(
        population, contents, shorten(sorted(drawn)), count_fewest_answers(config.risk)
    )
    if random and not len(population):
        logger.warning(
            f"{pluralize(len(random), 'answer')} drawn at random measure nothing: {POPULATION_FILE}, which `must "
            "review` writes beside them, is not there"
        )
    if beyond.drawn:
        logger.warning(
            f"of the pictures drawn at random and answered more are no longer there than of the others: "
            f"{beyond.drawn:,} of these answers count as wrong"
        )
    measuring = frozenset(numbers[value][0] for value in chosen.tolist())
    kept = read_kept(config.answers, config.risk, classes) if config.promise == SET else None
    return Answers(known, random, copies, contents, images, measuring, beyond, kept)


FEWEST_ANSWERS = 20  # drawn at random; with fewer they bound no rate

# Of the cross-validation on the answers drawn at random: as many as fit, of so many numbers each.
FOLDS, FOLD_NUMBERS = (5, 20), 5_000_000
MOST_WITHOUT = 0.05  # share of the pictures of a class that may be taken for none of the classes
NEVER = 100.0  # a margin that no probability reaches


@dataclass(frozen=True)
class Measured:
    """What A answers drawn at random say about the labels of N images."""

    others: np.ndarray  # bool [N], the pictures without an answer, one image of each
    marked: np.ndarray  # bool [N], images whose label is accepted
    accuracy: AccuracyEstimate
    accepted: Accepted
    abstention: Abstention | None  # None: no threshold
    labels: np.ndarray  # int64 [A], refined labels without the image's own answer
    truth: np.ndarray  # int64 [A], the answers
    margin: float  # for none of the classes, as of `bound_none`
    none: str  # a line about it


def keep_labels(
    pool: Pool, answers: Answers, labels: TopLabels, measured: Measured
) -> tuple[Measured, KeptLabels | None]:
    """What was measured, and the accepted labels: those of an earlier look, unless now fewer pictures are left, or none
    is. They are written into `labels`."""
    contents, counts, kept = answers.contents[pool.numbers.numpy()], measured.accepted, answers.kept
    random, every = (
        {int(answers.contents[n]): label for n, label in part.items()} for part in (answers.random, answers.all)
    )
    if kept and kept.holds(counts.pictures, answers.contents, random, every):
        marked = np.isin(contents, kept.contents) & ~np.isin(contents, np.array([*every], np.uint64))
        accepted = int((marked & measured.others).sum())
        if counts.left and counts.pictures - counts.answered - accepted <= counts.left:
            order = np.argsort(kept.contents)
            of_mine = order[np.searchsorted(kept.contents, contents[marked], sorter=order)]
            labels.labels[marked] = torch.from_numpy(kept.labels[of_mine])
            labels.confidence[marked] = torch.from_numpy(kept.confidence[of_mine])
            return replace(measured, marked=marked, accepted=replace(counts, accepted=accepted)), kept
    mine = measured.marked & measured.others
    if not mine.any():
        return measured, None
    drawn = np.array([answers.contents[n] for n in answers.measuring if n in answers.random], np.uint64)
    return measured, KeptLabels(
        counts.risk, counts.pictures, contents[mine], labels.labels.numpy()[mine], labels.confidence.numpy()[mine],
        drawn, np.array([random[int(one)] for one in drawn], np.int64),
    )  # fmt: skip


def measure_answers(
    pool: Pool,
    answers: Answers,
    zero_shot: TopLabels,
    refined: TopLabels,
    remember: Callable[[dict[int, int]], tuple[Memory, Tensor]],
    risk: float,
    promise: str,
) -> Measured | None:
    """Accuracies on pictures that were drawn at random and answered, of zero-shot, of the model with its memory before
    any answer, and with answers; and which of the `refined` labels are accepted. `remember`: known answers -> the
    memory and the labels. None: nothing is measured."""
    measuring = {n: label for n, label in answers.random.items() if n in answers.measuring}
    rows, truth = answer_rows(measuring, pool.numbers)
    if not len(rows):
        return None
    _, first, pictures = np.unique(answers.contents[pool.numbers.numpy()], return_index=True, return_inverse=True)
    once, answered, known = (np.zeros(len(pool.numbers), bool) for _ in range(3))
    once[first] = True
    answered[answer_rows(answers.all, pool.numbers)[0]] = True
    known[answer_rows(answers.copies | answers.known, pool.numbers)[0]] = True
    measured = answers.measured[pool.numbers.numpy()] & once
    others, besides = measured & ~answered, measured & known
    besides[rows] = False

    model = predict_left_out(remember({})[0], pool, rows)
    folds = max(FOLDS[0], min(FOLDS[1], FOLD_NUMBERS // pool.probabilities.numel()))
    fold = torch.from_numpy((answers.contents[pool.numbers[rows].numpy()] % np.uint64(folds)).astype(np.int64))
    labels, ranks, found = leave_out(pool, answers.known, rows, fold, others, remember)
    with_answers, margin, none = bound_none(found, truth)
    ranks_besides = np.empty(0)
    if besides.any():  # as sure as they are without these answers
        drawn = {n: label for n, label in answers.known.items() if n in measuring}
        confidence = TopLabels.from_probabilities(remember(drawn)[1]).confidence.numpy()
        ranks_besides = find_ranks(confidence[besides], confidence[others])

    predicted = zero_shot.labels[rows], model.labels, with_answers.labels, labels
    before, now, later, right = (np.pad((one == truth).numpy(), (0, answers.gone.drawn)) for one in predicted)
    own, rest, unmeasured = (
        int(part.sum()) for part in (measured & known, measured & ~known, once & ~measured & ~known)
    )
    accuracy = AccuracyEstimate.from_correct(before, now, with_answers=later, unmeasured=unmeasured)
    sample, confidence = Sample(ranks, right[: len(rows)], ranks_besides, answers.gone), refined.confidence.numpy()
    counts = {"pictures": len(first), "answered": int((known & once).sum()), "unmeasured": unmeasured}
    accepted = accept(risk, sample, confidence[others], promise, **counts)
    marked = others & (confidence >= (math.inf if accepted.threshold is None else accepted.threshold))
    sure = np.pad(with_answers.confidence.numpy(), (0, answers.gone.drawn), constant_values=1)
    named = np.pad((with_answers.labels != NO_CLASS).numpy(), (0, answers.gone.drawn), constant_values=True)
    unsure = choose_abstention(risk, sure, later, "answers", named)
    return Measured(
        once & ~answered, marked[first][pictures], accuracy.with_labels(right, own, rest), accepted,
        None if unsure.threshold is None else unsure, labels.numpy(), truth.numpy(), margin, none,
    )  # fmt: skip


def leave_out(
    pool: Pool,
    known: dict[int, int],
    rows: Tensor,
    fold: Tensor,
    others: np.ndarray,
    remember: Callable[[dict[int, int]], tuple[Memory, Tensor]],
) -> tuple[Tensor, np.ndarray, Tensor]:
    """(labels int64 [A], their ranks float [A] among the pictures `others`, the model's probabilities [A, K]) of the
    answered images `rows` [A], each without its own answer, by cross-validation: as for an image without an answer, and
    as for a new image. `fold`: int64 [A], the part of each; by its content, so that an answer more changes no other's
    part."""
    labels, ranks = torch.empty(len(rows), dtype=torch.int64), np.empty(len(rows))
    predicted = torch.empty(len(rows), pool.probabilities.shape[1])
    for number in fold.unique():
        mine = rows[fold == number]
        left_out = {int(pool.numbers[row]) for row in mine}
        memory, left = remember({n: label for n, label in known.items() if n not in left_out})
        predicted[fold == number] = look_up(memory, pool, mine)[0]
        label, confidence = TopLabels.from_probabilities(left)
        labels[fold == number] = label[mine]
        ranks[(fold == number).numpy()] = find_ranks(confidence[mine].numpy(), confidence[others].numpy())
    return labels, ranks, predicted


def bound_none(probabilities: Tensor, truth: Tensor) -> tuple[TopLabels, float, str]:
    """(what is predicted with the margin; the smallest margin (must/method/model/memory.py) with which at most
    MOST_WITHOUT of the pictures of a class are taken for none of them; a line). Where that takes more answers, it is
    the smallest with which none of those answered is. `probabilities`: [A, K], of pictures that were drawn at random,
    without their own answer, and `truth`, int64 [A], their answers."""
    none, total = (1 - probabilities.sum(1)).clamp(min=0), probabilities.sum(1)
    named = (none / probabilities.amax(1)).log()[truth >= 0].sort(descending=True).values
    margin, text = NEVER, f"a class for every picture: fewer than {FEWEST_ANSWERS} random answers name one"
    if (count := len(named)) >= FEWEST_ANSWERS:
        wrong = next(errors for errors in range(count) if compute_upper_bound(errors + 1, count) > MOST_WITHOUT)
        margin, most = max(0.0, float(named[wrong])) + ROOM, 100 * compute_upper_bound(wrong, count)
        text = f"no class for at most {most:.1f} in 100 pictures of a class ({count} random answers, 95% confidence)"
    predicted = probabilities / (total + none * math.exp(-margin))[:, None]
    return TopLabels.from_probabilities(predicted), margin, f"the model names {text}"
