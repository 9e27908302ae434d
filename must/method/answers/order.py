"""Which pictures to ask a person about, and in which order.

Only pictures on which some rung's class differs from zero-shot's say anything about which rung is better. They are
drawn one by one, without going back, with a chance in proportion to their weight, so that an answer can be weighted by
what its chance was (Horvitz and Thompson 1952). The order is drawn once and does not depend on answers: any number of
people may work on it, and whoever goes on later goes on where it was.

Shapes: N images, K classes, A candidates: zero-shot, then the rungs.
"""

from __future__ import annotations

import numpy as np

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
