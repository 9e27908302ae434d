"""review.json: what a person is asked, in the order of the draws, and what the answers will be judged by.

It holds all that `must select --answers` needs: no image has to be looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from must.base.parameters import require
from must.method.answers.book import Answer
from must.method.answers.judge import NO_CLASS, UNSURE, Verdict, judged
from must.method.answers.order import drawn, prior, weights
from must.method.answers.questions import MOST, Questions


@dataclass(frozen=True, kw_only=True)
class Plan(Questions):
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
