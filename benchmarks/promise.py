"""How often the promise about labels that nobody looks at is broken, whatever a person does, and how many pictures are
left to be named.

    python benchmarks/promise.py [--draws 100] [--digits 10] [--risks 0.05 0.02]

First on made-up labels (errors of several shapes, more of them among the less sure labels), then on the bundled digits
with `must refine` itself, which learns from the answers; their answers are the true labels. A simulated person looks
after every few answers, and a promise counts as broken if it is at any of these looks: nobody can stop at a worse one.
For the promise of the set the wrong answers themselves count, too.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import must
from must.answers.answers_file import OPEN, UNSURE
from must.answers.estimate import (
    ACCEPTED,
    SCREEN_PICTURES,
    SET,
    Sample,
    accept,
    count_fewest_answers,
    count_overlooked,
    find_ranks,
)
from must.answers.population import ENTRY, NOTHING_GONE, Gone, choose_sample, forget_gone
from must.api.demo import CLASSES, find_assets, load_digits
from must.config import RefineConfig
from must.data.loader import EvalSource
from must.data.reader import ShardReader
from must.memory.features import Pool, read_features
from must.memory.measure import Answers
from must.memory.refine import refine_pool
from must.model.bundle import make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess
from must.model.distributed import World

PICTURES, ACT = 1_000, 100  # made-up pictures; random answers after which the person does something else
LOOKS = (*range(20, 200, 10), *range(200, 401, 40))
DIGIT_LOOKS = (40, 80, 110, 130, 160, 200)
SHAPES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {  # share of wrong labels by rank; multiples of the risk
    "few, falling": lambda rank, risk: 6 * risk * (1 - rank) ** 3,
    "many, falling": lambda rank, risk: 12 * risk * (1 - rank) ** 3,
    "linear": lambda rank, risk: 6 * risk * (1 - rank),
    "a bad part": lambda rank, risk: np.where(rank < 0.4, 5 * risk, risk / 25),
    "a worse part": lambda rank, risk: np.where(rank < 0.55, 2 * risk, 0.0),
    "the same everywhere": lambda rank, risk: np.full_like(rank, 1.2 * risk),
}


@dataclass
class State:
    """Of N pictures: `drawn`: rows that were drawn at random and answered, in order; `other`: bool [N], answered in
    another way; `here`: bool [N], not removed; `answer`: int64 [N], what the person says; `shown`: int64 [N], labels
    before the answers."""

    order: np.ndarray
    other: np.ndarray
    here: np.ndarray
    answer: np.ndarray
    shown: np.ndarray
    drawn: list[int] = field(default_factory=list)
    found: int = 0  # wrong labels that the person noticed on screens
    noticed: list[bool] = field(default_factory=list)  # and whether each known one
    population: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = iter(self.order.tolist())
        self.population = np.zeros(len(self.here), ENTRY)
        self.population["content"] = np.arange(len(self.here))

    def remove(self, rows: np.ndarray) -> None:
        """And `must review` is started."""
        self.here &= ~rows
        self.population = forget_gone(self.population, *self.contents)

    @property
    def contents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Uint64: the pictures that are there, those that were drawn, and those of these whose label was wrong."""
        drawn = np.array(sorted(self.drawn), np.int64)
        wrong = drawn[self.shown[drawn] != self.answer[drawn]]
        return np.flatnonzero(self.here).astype(np.uint64), drawn.astype(np.uint64), wrong.astype(np.uint64)

    @property
    def answered(self) -> np.ndarray:
        answered = self.other.copy()
        answered[self.drawn] = True
        return answered & self.here

    def draw_one(self) -> None:
        self.drawn.append(next(row for row in self.rows if self.here[row]))


@dataclass
class MadeUp:
    """Labels that learn nothing. Class 0 is right, 1 is wrong: the true class of all pictures is 0."""

    confidence: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    classes = 2

    @classmethod
    def make(cls, shape: str, risk: float, rng: np.random.Generator) -> MadeUp:
        confidence = rng.random(PICTURES)
        wrong = rng.random(PICTURES) < SHAPES[shape](find_ranks(confidence, confidence), risk)
        return cls(confidence, wrong.astype(np.int64), np.zeros(PICTURES, np.int64))

    def look(self, state: State, risk: float, promise: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the accepted labels, these labels)."""
        measuring, measured, gone = sample_of(state, risk)
        others, besides = measured & ~state.answered, state.answered.copy()
        besides[measuring] = False
        ranks, known = (find_ranks(self.confidence[rows], self.confidence[others]) for rows in (measuring, besides))
        said = state.answer[measuring]
        unsure = int((said == UNSURE).sum())
        overlooked = count_overlooked(state.found, state.noticed)
        sample = Sample(ranks, self.labels[measuring] == said, known, gone, unsure, overlooked)
        found = accept(risk, sample, self.confidence[others], promise)
        taken = others & (self.confidence >= (np.inf if found.threshold is None else found.threshold))
        return np.flatnonzero(taken), self.labels[taken]


@dataclass
class Digits:
    """The labels of `must refine`."""

    pool: Pool
    truth: np.ndarray
    classes = len(CLASSES)

    def look(self, state: State, risk: float, promise: str) -> tuple[np.ndarray, np.ndarray]:
        rows, pool = np.flatnonzero(state.here), self.pool
        part = Pool(
            torch.arange(len(rows)), [""] * len(rows), pool.vectors[rows], pool.probabilities[rows],
            pool.others[:, rows], pool.tokens, pool.embedding,
        )  # fmt: skip
        measuring, measured, gone = sample_of(state, risk)
        said = np.where(state.answered, state.answer, OPEN)
        sample = np.isin(rows, measuring)
        answers = Answers(said[rows], sample, measured[rows], rows.astype(np.uint64), gone)
        refined = refine_pool(part, answers, torch.device("cpu"), 10_000, risk, promise)
        if refined.measured is None or refined.accepted is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        taken = refined.accepted & (said[rows] == OPEN)
        return rows[taken], refined.labels.labels.numpy()[taken]


def sample_of(state: State, risk: float) -> tuple[np.ndarray, np.ndarray, Gone]:
    """As of `choose_sample`: the contents are the numbers of the pictures."""
    if state.here.all():
        return np.array(sorted(state.drawn), np.int64), state.here, NOTHING_GONE
    here = state.contents[0]
    measuring, images, gone = choose_sample(state.population, *state.contents, count_fewest_answers(risk))
    measured = np.zeros(len(state.here), bool)
    measured[here[images].astype(np.int64)] = True
    return measuring.astype(np.int64), measured, gone


Labels = MadeUp | Digits
Act = Callable[[State, Labels, np.random.Generator, float, str], None]


def sure_ones(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """By class: the person answers about the surest half."""
    sure = labels.confidence if isinstance(labels, MadeUp) else labels.pool.probabilities.float().amax(1).numpy()
    state.other |= find_ranks(sure, sure) > 0.5


def right_ones(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """`--add`: answers about 30% of the pictures, of those whose labels are right."""
    right = labels.labels == labels.truth if isinstance(labels, MadeUp) else zero_shot(labels) == labels.truth
    state.other |= right & (rng.random(len(right)) < 0.3)


def remove(of_wrong: float, of_unanswered: float, of_all: float = 0.0) -> Act:
    """Removes these shares, at random, of the answered pictures whose labels were wrong, of those without an answer,
    and of all, such as a folder."""

    def act(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
        wrong = state.answered & (state.shown != state.answer)
        shares = np.where(wrong, of_wrong, np.where(state.answered, 0.0, of_unanswered))
        state.remove((rng.random(len(wrong)) < shares) | (rng.random(len(wrong)) < of_all))

    return act


def remove_left(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """Removes the pictures that are left to be named."""
    taken = np.zeros(len(state.here), bool)
    taken[labels.look(state, risk, promise)[0]] = True
    state.remove(~taken & ~state.answered)


def remove_accepted(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """Removes the pictures that need not be looked at."""
    taken = np.zeros(len(state.here), bool)
    taken[labels.look(state, risk, promise)[0]] = True
    state.remove(taken)


def answer_left(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """Names the pictures that are left."""
    taken = labels.look(state, risk, promise)[0]
    state.other |= state.here
    state.other[taken] = False


def cannot_tell(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """From the start: nobody can tell a tenth of the pictures; half of their made-up labels are wrong."""
    unsure = rng.random(len(state.answer)) < 0.1
    state.answer[unsure] = UNSURE
    if isinstance(labels, MadeUp):
        labels.labels[unsure] = rng.random(int(unsure.sum())) < 0.5


def wrong_answers(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
    """From the start: 2 in 100 answers are wrong."""
    wrong = rng.random(len(state.answer)) < 0.02
    state.answer[wrong] = (
        state.answer[wrong] + rng.integers(1, max(2, labels.classes), int(wrong.sum()))
    ) % labels.classes


def name_on_screens(overlooks: float) -> Act:
    """Names the pictures that are left on screens, and does not see this share of the wrong labels."""

    def act(state: State, labels: Labels, rng: np.random.Generator, risk: float, promise: str) -> None:
        left = state.here & ~state.answered
        left[labels.look(state, risk, promise)[0]] = False
        wrong, rows = left & (state.shown != state.answer), np.flatnonzero(left)
        seen = wrong & (rng.random(len(left)) >= overlooks)
        state.answer[wrong & ~seen] = state.shown[wrong & ~seen]
        state.other |= left
        state.found += int(seen.sum())
        screens = math.ceil(len(rows) / (SCREEN_PICTURES - 1))
        state.noticed += (rng.random(max(0, screens - 2)) >= overlooks).tolist()

    return act


ONCE, FOUR_TIMES = (ACT,), (60, ACT, 140, 180)
ACTS: dict[str, tuple[tuple[int, ...], Act | None]] = {  # random answers before it
    "random answers only": ((), None),
    "answers by class about the surest half": ((20,), sure_ones),
    "answers by --add where labels are right": ((20,), right_ones),
    "removes answered pictures with wrong labels": (ONCE, remove(1, 0)),
    "removes a fifth of all": (ONCE, remove(0, 0, 0.2)),
    "removes both": (ONCE, remove(1, 0, 0.2)),
    "removes a fifth of those without an answer": (ONCE, remove(0, 0.2)),
    "and the answered ones with wrong labels": (ONCE, remove(1, 0.2)),
    "the same, a twentieth": (ONCE, remove(1, 0.05)),
    "a fifth of those without an answer, four times": (FOUR_TIMES, remove(0, 0.2)),
    "and the answered ones with wrong labels, each time": (FOUR_TIMES, remove(1, 0.2)),
    "the same, a twentieth each time": (FOUR_TIMES, remove(1, 0.05)),
    "removes those that are left": (ONCE, remove_left),
    "removes those not to be looked at": (ONCE, remove_accepted),
    "names those that are left": (ONCE, answer_left),
    **{
        f"names those that are left on screens, overlooks {share:.0%}": ((60, ACT, 180), name_on_screens(share))
        for share in (0.02, 0.05, 0.2)
    },
    "nobody can tell a tenth": ((0,), cannot_tell),
    "2 in 100 answers are wrong": ((0,), wrong_answers),
}


def simulate(
    labels: Labels, name: str, risk: float, promise: str, rng: np.random.Generator, looks: tuple[int, ...] = LOOKS
) -> tuple[bool, list[float]]:
    """(whether the promise is broken at any look, the share of the pictures that nobody has to look at, by look)."""
    pictures, (times, act) = len(labels.truth), ACTS[name]
    shown = labels.labels if isinstance(labels, MadeUp) else zero_shot(labels)
    none = np.zeros(pictures, bool)
    state = State(rng.permutation(pictures), none, ~none, labels.truth.copy(), shown)
    broken, unseen = False, list[float]()
    for number in range(looks[-1] + 1):
        if number in times and act:
            act(state, labels, rng, risk, promise)
        if number in looks:
            rows, given = labels.look(state, risk, promise)
            wrong = int((given != labels.truth[rows]).sum())
            if promise == SET:
                answered = state.answered & (state.answer != UNSURE)
                wrong += int((state.answer[answered] != labels.truth[answered]).sum())
            named = int((state.here & ~(state.answered & (state.answer == UNSURE))).sum())
            broken |= wrong > risk * (named if promise == SET else len(rows)) + 1e-9
            unseen.append(len(rows) / int(state.here.sum()))
        if len(state.drawn) == int(state.here.sum()):
            break
        state.draw_one()
    return broken, unseen + [0.0] * (len(looks) - len(unseen))


def zero_shot(digits: Digits) -> np.ndarray:
    return digits.pool.probabilities.float().argmax(1).numpy()


def read_digits(folder: Path) -> Digits:
    must.demo(output=folder)
    shards, classifier = (str(folder / name) for name in ("shards", "classifier.safetensors"))
    must.shard(source=str(folder / "images/unlabeled"), output=shards, workers=1)
    must.classifier(classes=str(folder / "classes.yaml"), model=str(find_assets()), output=classifier)
    bundle = make_zero_shot_bundle(load_text_classifier(classifier))
    config = RefineConfig(shards=shards, classifier=classifier, model="-", output="-", workers=0, device="cpu")
    source = EvalSource.open(config, get_preprocess(bundle.description))
    features = read_features(bundle.model, source, World(0, 1, torch.device("cpu")))
    pool = features.pool(bundle.model, [features.probabilities(bundle.model)])
    reader, labels = ShardReader(shards, "train"), [CLASSES.index(label) for _, label in load_digits()["unlabeled"]]
    truth = [labels[int(Path(reader.description(number)["source"]).stem)] for number in pool.numbers.tolist()]
    return Digits(pool, np.array(truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="of made-up labels, for each shape; 0: none")
    parser.add_argument("--digits", type=int, default=10, help="orders of the digits; 0: none")
    parser.add_argument("--risks", type=float, nargs="+", default=[0.05, 0.02])
    parser.add_argument("--acts", nargs="+", default=[*ACTS])
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    for risk in options.risks if options.draws else ():
        for promise in (SET, ACCEPTED):
            print(f"\nmade-up labels, at most {risk:.0%} of {promise}: broken in % of {options.draws} draws, by shape")
            for name in options.acts:
                cells = list[str]()
                for number, shape in enumerate(SHAPES):
                    rng = np.random.default_rng([number, round(1000 * risk)])
                    runs = [
                        simulate(MadeUp.make(shape, risk, rng), name, risk, promise, rng) for _ in range(options.draws)
                    ]
                    unseen = np.mean([run[1][LOOKS.index(130)] for run in runs])
                    cells.append(f"{100 * np.mean([run[0] for run in runs]):5.1f} ({100 * unseen:.0f})")
                print(f"{name:45s}{'  '.join(cells)}", flush=True)
    if not options.digits:
        return
    with tempfile.TemporaryDirectory() as folder:
        digits = read_digits(Path(folder))
    looks = DIGIT_LOOKS
    for risk in options.risks:
        for promise in (SET, ACCEPTED):
            print(f"\ndigits, at most {risk:.0%} of {promise}: broken of {options.digits}; unseen in % after {looks}")
            for name in options.acts:
                rng = np.random.default_rng(round(1000 * risk))
                runs = [simulate(digits, name, risk, promise, rng, looks) for _ in range(options.digits)]
                unseen = np.mean([run[1] for run in runs], axis=0)
                print(f"{name:45s}{sum(run[0] for run in runs):3d}  {(100 * unseen).round().astype(int)}", flush=True)


if __name__ == "__main__":
    main()
