"""Is one candidate better than another? A test by betting, valid whenever one stops.

Somebody who bets against "the mean is at most m", at odds that are fair if it is, gains a factor of 20 with a chance of
at most 1 in 20, however long he plays and whenever he stops (Ville 1939; Waudby-Smith and Ramdas 2024). Draws are
weighted and without going back (Shekhar, Xu, Lipton, Liang, Ramdas 2023): what is known already is added exactly, and
when all pictures are answered nothing is left to chance.

Shapes: T answers in the order of the draws; [...] any further axes, of which each is a mean to bet about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

HOPED, SPREAD, MADE_UP = 0.2, 0.3, 5  # mean, mean square and number of the outcomes that stakes begin with
BOLD = 0.9  # share of the largest stake that cannot lose all


@dataclass(frozen=True)
class Draws:
    """What weighted draws without going back say of a mean over N images, those outside the pool counting as 0."""

    values: np.ndarray  # [T, ...], the estimates: each one's expectation is the mean
    known: np.ndarray  # [T, ...], what the pictures drawn before add to the mean
    reach: np.ndarray  # [T, ...], the furthest that a draw's estimate can be from `known`
    low: np.ndarray  # [...], what the mean is at least, and at most, whatever the answers to come
    high: np.ndarray

    @classmethod
    def of(
        cls, differences: np.ndarray, chances: np.ndarray, least: np.ndarray, images: int, unseen: np.ndarray
    ) -> Draws:
        """Args:
        differences: [T, ...], each from -1 to 1.
        chances: [T], the weights of the pictures drawn; those of the whole pool have the sum 1.
        least: [...], the smallest weight of a picture in the pool whose difference may not be 0.
        images: N.
        unseen: [...], pictures not drawn yet whose difference may not be 0.
        """
        extra = (1,) * (differences.ndim - 1)
        left = np.maximum(1 - np.concatenate([[0.0], np.cumsum(chances)])[:-1], chances)  # before each draw
        known = np.cumsum(differences, axis=0) - differences
        values = known + differences * (left / chances).reshape(-1, *extra)
        seen = differences.sum(axis=0)
        return cls(
            values / images,
            known / images,
            left.reshape(-1, *extra) / (least * images),
            (seen - unseen) / images,
            (seen + unseen) / images,
        )

    @property
    def mean(self) -> np.ndarray:
        """[...], unbiased."""
        found = self.values.mean(axis=0) if len(self.values) else np.zeros_like(self.low)
        return np.clip(found, self.low, self.high)

    def against_at_most(self, mean: float | np.ndarray) -> np.ndarray:
        """[...] the factor gained in betting against a mean of at most `mean`; 1 at the beginning."""
        return np.where(self.low > mean, np.inf, wealth(self.values - mean, self.reach - self.known + mean))

    def against_at_least(self, mean: float | np.ndarray) -> np.ndarray:
        """[...] the same against a mean of at least `mean`."""
        return np.where(self.high < mean, np.inf, wealth(mean - self.values, self.reach + self.known - mean))

    def at(self, *place: Any) -> Draws:
        """Some of the means; `place` as in an index."""
        inside = (slice(None), *place)
        return Draws(self.values[inside], self.known[inside], self.reach[inside], self.low[place], self.high[place])


def wealth(gains: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """[...] the factor gained by bets whose outcomes `gains` [T, ...] are never below -`worst` [T, ...].

    The stake of a bet follows from the outcomes before it: their mean over their mean square, which is what lets money
    grow fastest (Kelly 1956), after a few outcomes that are made up.
    """
    if not len(gains):
        return np.ones(gains.shape[1:])
    rate = np.maximum(np.where(worst > 0, gains / np.where(worst > 0, worst, 1), 0), -1)
    before = rate.cumsum(axis=0) - rate, (rate**2).cumsum(axis=0) - rate**2
    stake = (MADE_UP * HOPED + before[0]) / (MADE_UP * SPREAD + before[1])
    return np.exp(np.minimum(np.log1p(rate * stake.clip(0, BOLD)).sum(axis=0), 600))
