"""What people's answers say about the images of a split: accuracies, which labels nobody has to look at, how often a
picture gets none of the classes. The statistics are those of must/answers; here answered images are
left out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from must.answers.abstention import ROOM, Abstention, choose_abstention
from must.answers.accuracy import AccuracyEstimate, compute_upper_bound
from must.answers.answers_file import NO_CLASS, OPEN, OUTDATED, SCREEN, UNSURE, Answer
from must.answers.estimate import (
    SET,
    Accepted,
    Sample,
    accept,
    count_fewest_answers,
    count_overlooked,
    find_ranks,
)
from must.answers.population import (
    ENTRY,
    NOTHING_GONE,
    POPULATION_FILE,
    Gone,
    KeptLabels,
    choose_sample,
    read_kept,
    read_population,
)
from must.base.text import pluralize
from must.config import RefineConfig
from must.memory.features import Features, Pool
from must.memory.predictions import Guesses, TopLabels
from must.memory.propagate import look_up, predict_left_out
from must.model.memory import Memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answers:
    """Of N pictures."""

    said: np.ndarray  # int64 [N], as of `Answer.find_number`; OPEN without an answer
    sample: np.ndarray  # bool [N], those that were drawn at random and measure
    measured: np.ndarray  # bool [N], those that the sample says something about
    contents: np.ndarray  # uint64 [N], the first 8 bytes of their sha256
    gone: Gone = NOTHING_GONE
    kept: KeptLabels | None = None  # of an earlier look, for the promise of the set
    unread: int = 0  # the split's pictures that are not among these, and those of them with an answer:
    elsewhere: int = 0
    overlooked: int = 0  # wrong labels that people left on screens, as of `count_overlooked`
    missed: int = 0  # of so many wrong labels that were shown as a test:
    checks: int = 0

    @property
    def known(self) -> np.ndarray:
        """Bool [N]: pictures with a class, or none of the classes, by an answer."""
        return self.said >= NO_CLASS

    def teach(self, rows: np.ndarray) -> Tensor:
        """Int64 [2, A]: rows and classes of the answers about the pictures `rows`, bool [N], that teach."""
        taught = np.flatnonzero(rows & self.known)
        return torch.from_numpy(np.stack([taught, self.said[taught]]))


def find_answers(
    config: RefineConfig, given: Mapping[str, Answer], classes: list[str], features: Features
) -> Answers:  # fmt: skip
    """What is `given`, of `read_answers`, about the N pictures of the features. An answer that does not fit the classes
    teaches nothing: its class is gone, or it is "none of the classes" and one was added. About a picture drawn at
    random any label is wrong, as its image stays part of the sample; so does one that is gone, see `Gone`."""
    contents, split = features.contents, np.unique(features.split)
    said, drawn, gone, unfit = dict[int, int](), dict[int, bool](), 0, list[Answer]()
    found, checks = 0, list[bool]()
    there, class_numbers = {*split.tolist()}, {name: number for number, name in enumerate(classes)}
    for sha256, answer in given.items():
        content = int(sha256[:16], 16)
        checks += answer.noticed
        if answer.measures:
            drawn[content] = answer.corrects
        if content not in there:
            gone += 1
            continue
        said[content] = answer.find_number(class_numbers)
        found += answer.sampled == SCREEN and answer.corrects
        if said[content] == OUTDATED:
            unfit.append(answer)
    if gone:
        logger.info(f"{pluralize(gone, 'answer')} left out: of images that are no longer there")
    if renamed := sum(answer.label is not None for answer in unfit):
        logger.warning(
            f"{pluralize(renamed, 'answer')} with a class that is no longer there: they teach nothing, and those drawn "
            "at random count as wrong; if a class has another name now: must adapt WORK --rename OLD=NEW"
        )
    if earlier := len(unfit) - renamed:
        logger.warning(
            f"{pluralize(earlier, 'answer')} of none of the classes, from before a name was added: they teach nothing, "
            "and those drawn at random count as wrong, until `must review` has asked about them again"
        )
    population = read_population(config.answers) if config.answers else np.empty(0, ENTRY)
    order, wrong = (np.array(sorted(part), np.uint64) for part in (drawn, [one for one in drawn if drawn[one]]))
    chosen, images, beyond = choose_sample(population, split, order, wrong, count_fewest_answers(config.risk))
    if drawn and not len(population):
        logger.warning(
            f"{pluralize(len(drawn), 'answer')} drawn at random measure nothing: {POPULATION_FILE}, which `must "
            "review` writes beside them, is not there"
        )
    if beyond.drawn:
        logger.warning(
            f"answered pictures whose label was wrong are no longer there: {beyond.drawn:,} of these answers count as "
            "wrong"
        )
    values = np.array([said.get(one, OPEN) for one in contents.tolist()], np.int64)
    measured = np.isin(contents, split[images])
    kept = read_kept(config.answers, config.risk, classes) if config.answers and config.promise == SET else None
    unread, elsewhere = len(split) - features.undecodable - len(contents), len(said) - int((values != OPEN).sum())
    return Answers(
        values, np.isin(contents, chosen), measured, contents, beyond, kept, unread, elsewhere,
        count_overlooked(found, checks), len(checks) - sum(checks), len(checks),
    )  # fmt: skip


FEWEST_ANSWERS = 20  # drawn at random; with fewer they bound no rate

# Of the cross-validation on the answers drawn at random: as many as fit, of so many numbers each.
FOLDS, FOLD_NUMBERS = (5, 20), 5_000_000
MOST_WITHOUT = 0.05  # share of the pictures of a class that may be taken for none of the classes
NEVER = 100.0  # a margin that no probability reaches


@dataclass(frozen=True)
class Measured:
    """What A answers drawn at random say about the labels of N images."""

    others: np.ndarray  # bool [N], the pictures without an answer
    marked: np.ndarray  # bool [N], images whose label is accepted
    accuracy: AccuracyEstimate
    accepted: Accepted
    abstention: Abstention | None  # None: no threshold
    labels: np.ndarray  # int64 [A], refined labels without the image's own answer
    truth: np.ndarray  # int64 [A], the answers
    margin: float  # for none of the classes, as of `bound_none`
    none: str  # a line about it


def keep_labels(answers: Answers, labels: TopLabels, measured: Measured) -> tuple[Measured, KeptLabels | None]:
    """What was measured, and the accepted labels: those of an earlier look, unless now fewer pictures are left, or none
    is. They are written into `labels`. A look at fewer of the pictures replaces none."""
    contents, counts, kept = answers.contents, measured.accepted, answers.kept
    said = {one: label for one, label in zip(contents.tolist(), answers.said.tolist(), strict=True) if label != OPEN}
    if kept and kept.holds(len(contents) + answers.unread, contents, said, answers.overlooked):
        marked = np.isin(contents, kept.contents) & measured.others
        accepted = int(marked.sum())
        if counts.left and counts.pictures - counts.answered - accepted <= counts.left:
            order = np.argsort(kept.contents)
            of_mine = order[np.searchsorted(kept.contents, contents[marked], sorter=order)]
            labels.labels[marked] = torch.from_numpy(kept.labels[of_mine])
            labels.confidence[marked] = torch.from_numpy(kept.confidence[of_mine])
            return replace(measured, marked=marked, accepted=replace(counts, accepted=accepted)), kept
    mine = measured.marked
    if kept and answers.unread and kept.pictures > len(contents):
        return measured, kept
    if not mine.any():
        return measured, None
    return measured, KeptLabels(
        counts.risk, counts.pictures, counts.allowed, contents[mine], labels.labels.numpy()[mine],
        labels.confidence.numpy()[mine], contents[answers.sample], answers.said[answers.sample],
    )  # fmt: skip


Remember = Callable[[np.ndarray], tuple[Memory, Tensor]]  # bool [N], pictures whose answers teach -> memory, labels


def measure_answers(
    pool: Pool, answers: Answers, zero_shot: TopLabels, refined: Guesses, remember: Remember, risk: float,
    promise: str,
) -> tuple[TopLabels, Measured | None]:  # fmt: skip
    """(labels, what is measured). Accuracies on pictures that were drawn at random and answered, of zero-shot, of the
    model with its memory before any answer, and with answers; and which of the labels are accepted. None: nothing is
    measured; then only people say that a picture is none of the classes.

    Accuracies are of the pictures that people can tell. In the test of what is accepted a drawn picture that nobody can
    tell counts as wrong: there are others like it among those without an answer."""
    everyone, sample = answers.teach(answers.known), Drawn.of(pool, answers)
    if not len(sample.rows):
        return give_answers(refined.decide(NEVER), *everyone), None
    others, besides = (answers.measured & part for part in (answers.said == OPEN, answers.known & ~answers.sample))
    nothing = np.zeros_like(others)
    found = sample.leave_out(pool, answers, others, remember)
    model = predict_left_out(remember(nothing)[0], pool, torch.from_numpy(sample.rows)).labels.numpy()
    guesses = Guesses.of(found.probabilities)
    margin, none = bound_none(guesses, torch.from_numpy(sample.truth))
    with_answers, labels = guesses.decide(margin), give_answers(refined.decide(found.margin), *everyone)
    ranks_besides = np.empty(0)
    if besides.any():  # as sure as they are without these answers
        confidence = Guesses.of(remember(answers.sample)[1]).decide(found.margin).confidence.numpy()
        ranks_besides = find_ranks(confidence[besides], confidence[others])

    gone, told, unsure = answers.gone.drawn, sample.truth != UNSURE, answers.said == UNSURE
    predicted = zero_shot.labels.numpy()[sample.rows], model, with_answers.labels.numpy(), found.labels
    before, now, later, right = (np.pad((labels == sample.truth)[told], (0, gone)) for labels in predicted)
    own, rest = answers.measured & answers.known, answers.measured & ~answers.known & ~unsure
    unmeasured = int((~answers.measured & ~answers.known & ~unsure).sum())
    accuracy = AccuracyEstimate.from_correct(before, now, later, unmeasured)
    accuracy = accuracy.with_labels(right, int(own.sum()), int(rest.sum()), answers.overlooked)
    confidence, counts = labels.confidence.numpy(), {"unsure": int(unsure.sum()), "unmeasured": unmeasured}
    counts |= {"pictures": len(others) - counts["unsure"], "answered": int(answers.known.sum())}
    correct, drawn_unsure = found.labels == sample.truth, int((~told).sum())
    tested = Sample(found.ranks, correct, ranks_besides, answers.gone, drawn_unsure, answers.overlooked)
    accepted = accept(risk, tested, confidence[others], promise, **counts)
    marked = others & (confidence >= (math.inf if accepted.threshold is None else accepted.threshold))
    sure = np.pad(with_answers.confidence.numpy()[told], (0, gone), constant_values=1)
    named = np.pad(with_answers.labels.numpy()[told] != NO_CLASS, (0, gone), constant_values=True)
    abstention = choose_abstention(risk, sure, later, "answers", named)
    return labels, Measured(
        answers.said == OPEN, marked, accuracy, accepted, None if abstention.threshold is None else abstention,
        found.labels[told], sample.truth[told], margin, none,
    )  # fmt: skip


def give_answers(labels: TopLabels, rows: Tensor, given: Tensor) -> TopLabels:
    """The labels with those of the answered pictures `rows` [A], which are sure."""
    labels.labels[rows], labels.confidence[rows] = given, 1.0
    return labels


class LeftOut(NamedTuple):
    """Of A pictures that were drawn at random, each without its own answer."""

    labels: np.ndarray  # int64 [A], as of a picture without an answer
    ranks: np.ndarray  # float [A], of these labels, as of `find_ranks`
    probabilities: Tensor  # [A, K], as of a new image
    margin: float  # for none of the classes, of pictures without an answer


class Drawn(NamedTuple):
    """The A pictures that were drawn at random and measure."""

    rows: np.ndarray  # int64 [A]
    truth: np.ndarray  # int64 [A], the answers
    fold: np.ndarray  # uint64 [A], the part of each; by its content, so that an answer more changes no other's part

    @classmethod
    def of(cls, pool: Pool, answers: Answers) -> Self:
        rows, folds = np.flatnonzero(answers.sample), FOLD_NUMBERS // pool.probabilities.numel()
        if answers.known.sum() > 2 * len(rows):  # then few parts leave few of the answers out
            folds = FOLDS[0]
        fold = answers.contents[rows] % np.uint64(max(FOLDS[0], min(FOLDS[1], folds)))
        return cls(rows, answers.said[rows], fold)

    def leave_out(self, pool: Pool, answers: Answers, others: np.ndarray, remember: Remember) -> LeftOut:
        """By cross-validation. `others`: bool [N], the pictures that ranks are among."""
        left, predicted = (torch.empty(len(self.rows), pool.probabilities.shape[1]) for _ in range(2))
        parts, among = list[tuple[np.ndarray, Guesses]](), torch.from_numpy(others)
        for number in np.unique(self.fold):
            mine = self.fold == number
            rows, known = self.rows[mine], answers.known.copy()
            known[rows] = False
            memory, refined = remember(known)
            predicted[torch.from_numpy(mine)] = look_up(memory, pool, torch.from_numpy(rows))[0]
            left[torch.from_numpy(mine)] = refined[rows]
            parts.append((mine, Guesses(*(part[among] for part in Guesses.of(refined)))))
        guesses = Guesses.of(left)
        margin, _ = bound_none(guesses, torch.from_numpy(self.truth))
        labels, confidence = (part.numpy() for part in guesses.decide(margin))
        ranks = np.empty(len(labels))
        for mine, rest in parts:
            ranks[mine] = find_ranks(confidence[mine], rest.decide(margin).confidence.numpy())
        return LeftOut(labels, ranks, predicted, margin)


def bound_none(guesses: Guesses, truth: Tensor) -> tuple[float, str]:
    """(the smallest margin (must/model/memory.py) with which at most MOST_WITHOUT of the pictures of a class are
    taken for none of them; a line). Where that takes more answers, it is the smallest with which none of those answered
    is. `guesses`: of A answered pictures, without their own answer, and `truth`, int64 [A], their answers."""
    named = (guesses.none / guesses.confidence).log()[truth >= 0].sort(descending=True).values
    margin, text = NEVER, f"a class for every picture: fewer than {FEWEST_ANSWERS} random answers name one"
    if (count := len(named)) >= FEWEST_ANSWERS:
        wrong = next(errors for errors in range(count) if compute_upper_bound(errors + 1, count) > MOST_WITHOUT)
        margin, most = max(0.0, float(named[wrong])) + ROOM, 100 * compute_upper_bound(wrong, count)
        text = f"no class for at most {most:.1f} in 100 pictures of a class ({count} random answers, 95% confidence)"
    return margin, f"the model names {text}"
