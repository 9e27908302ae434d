"""review.json: what a person is asked, in the order of the draws, and what the answers will be judged by.

It holds all that `must select --answers` needs: no image has to be looked at again.

Only pictures on which some rung's class differs from zero-shot's say anything about which rung is better. They are
drawn one by one, without going back, with a chance in proportion to their weight, so that an answer can be weighted by
what its chance was (Horvitz and Thompson 1952). The order is drawn once and does not depend on answers: any number of
people may work on it, and whoever goes on later goes on where it was.

Shapes: N images, K classes, A candidates: zero-shot, then the rungs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from must.base.parameters import require
from must.method.answers.book import Answer
from must.method.answers.judge import NO_CLASS, UNSURE, Verdict, judged
from must.method.answers.questions import MOST, Questions

FLOOR = 0.3  # share of the draws that is even among the pictures, which bounds what one answer can weigh
EVEN = 0.5  # share of the prior that is even among the rungs, whatever look-alikes say
SHARPEST = 6.0  # standard errors beyond which look-alikes' evidence counts as no more


def prior(z: np.ndarray) -> np.ndarray:
    """[R] of sum 1: how promising each rung is, by look-alikes' standard errors `z` [R] for it against zero-shot."""
    tilt = np.exp(np.clip(z, -SHARPEST, SHARPEST))
    return EVEN / len(z) + (1 - EVEN) * tilt / tilt.sum()


def weights(labels: np.ndarray, likely: np.ndarray, promise: np.ndarray) -> np.ndarray:
    """Float64 [N] of sum 1 (0 where no rung differs): the chances of a first draw.

    The variance of a rung's estimated gain is least when a picture is drawn in proportion to the root of the expected
    squared difference (Neyman 1934): 0 where the rung has zero-shot's class, else the chance that either of the two
    classes is right. Rungs count by their promise.

    Args:
        labels: int [A, N], the candidates' classes.
        likely: [A, N], how likely each candidate's class is to be right: the candidates' mean probability of it.
        promise: [A - 1] of sum 1.
    """
    expected = np.zeros(labels.shape[1])
    for rung, share in enumerate(promise, 1):
        expected += share * np.where(labels[rung] != labels[0], likely[0] + likely[rung], 0)
    differ = (labels[1:] != labels[0]).any(axis=0)
    if not differ.any():
        return np.zeros(labels.shape[1])
    root = np.sqrt(expected)
    return (1 - FLOOR) * root / root.sum() + FLOOR * differ / differ.sum()


def drawn(chances: np.ndarray, seed: int) -> np.ndarray:
    """All pictures of positive weight, int64 [M]: each next one drawn from those that are left, by weight.

    Sorting exponential numbers divided by the weights draws so (Efraimidis and Spirakis 2006).
    """
    there = np.flatnonzero(chances)
    arrival = np.random.default_rng(seed).exponential(size=len(there)) / chances[there]
    return there[np.argsort(arrival, kind="stable")]


@dataclass(frozen=True, kw_only=True)
class SamplingPlan(Questions):
    """A candidates: zero-shot, then the rungs at `alphas` [A - 1] of the way."""

    FILE = "review.json"

    baseline: str  # what `must select` will be given
    alphas: list[float]
    images: int  # among which the gain is measured
    pool: int  # pictures on which some candidate differs from zero-shot
    promise: list[float]  # [A - 1]
    least: list[list[float]]  # [A, A]
    differing: list[list[int]]  # [A, A]

    @property
    def candidates(self) -> int:
        return len(self.alphas) + 1

    def check(self) -> None:
        super().check()
        for table in (self.least, self.differing):
            require(np.array(table, np.float64).shape == (self.candidates, self.candidates), "a table's shape")
        require(np.array(self.promise, np.float64).shape == (len(self.alphas),), "promise")

    def answered(self, answers: dict[str, Answer]) -> int:
        """How many of the first pictures have an answer, up to the first that has none: with a gap, those behind it
        would be the ones that were easy to answer."""
        for position, picture in enumerate(self.pictures):
            if picture.sha256 not in answers:
                return position
        return len(self.pictures)

    def verdict(self, answers: dict[str, Answer], with_ends: bool = True) -> Verdict:
        """What the answers say, those up to the first gap. `with_ends`: as of `judged`."""
        asked = self.pictures[: self.answered(answers)]
        given = [answers[picture.sha256] for picture in asked]
        truth = [UNSURE if a.unsure else NO_CLASS if a.label is None else self.at.get(a.label, NO_CLASS) for a in given]
        return judged(
            np.array([picture.classes for picture in asked], np.int64).reshape(len(asked), self.candidates).T,
            np.array(truth, np.int64),
            np.array([picture.chance for picture in asked]),
            np.array(self.promise),
            np.array(self.least),
            self.images,
            np.array(self.differing),
            with_ends,
        )


def plan_of(labels: np.ndarray, likely: np.ndarray, z: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(places of the pictures to ask about, int64 [at most MOST] in the order of the draws; what of a plan follows
    from the predictions).

    Args:
        labels: int [A, N], the candidates' classes.
        likely: [A, N], how likely each candidate's class is to be right.
        z: [A - 1], look-alikes' evidence for each rung against zero-shot, in standard errors.
    """
    promise = prior(z)
    chances = weights(labels, likely, promise)
    differ = labels[:, None, :] != labels[None, :, :]
    order = drawn(chances, seed)[:MOST]
    return order, {
        "images": labels.shape[1],
        "pool": int((chances > 0).sum()),
        "promise": promise.tolist(),
        "least": np.where(differ, chances, 1.0).min(axis=-1).tolist(),
        "differing": differ.sum(axis=-1).tolist(),
        "chances": chances[order].tolist(),
    }
