"""The audited ladder: how far from zero-shot towards the adapted weights it is safe to go.

Weights between the two, theta_0 + a (theta_T - theta_0), are tried in turn, a = 0.1, 0.2 ... 1. A rung is judged by
the rung kept so far, never by itself: did an image's look-alikes believe in its new class before the step was taken?
A candidate cannot please this judge by becoming smooth, nor by feeding classes that are full already. Pure functions.

Shapes: N images, K classes, C neighbours an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RUNGS = tuple(round(0.1 * rung, 1) for rung in range(1, 11))
REFUSED = -2.0  # standard errors at which the way ends
NEEDED = (4.0, 1.0)  # standard errors that a rung needs from look-alikes that know little of the classes, or much
KNOWING = (0.4, 0.5)  # their agreement below and above which that is so; in a straight line in between
IGNORANT = 0.3  # agreement below which nothing is kept, however sure they are
RARE = 1e-3  # probability added to a class's mean, so that a class that is never predicted has no infinite lift
MIN_IMAGES = 50
ROWS = 256  # images whose class probabilities are spread out at a time


@dataclass(frozen=True)
class Rung:
    """`z`: mean of the images' votes in standard errors; `changed`: share of images with another class than the rung
    kept before it; `outcome`: kept, undecided or refused."""

    alpha: float
    z: float
    changed: float
    outcome: str


@dataclass(frozen=True)
class Climb:
    """`alpha`: what is kept, 0 for zero-shot; `reason`: why not more, in words."""

    alpha: float
    reason: str
    rungs: list[Rung] = field(default_factory=list)
    images: int = 0
    agreement: float | None = None  # of look-alikes in zero-shot's classes, chance taken away
    needed: float | None = None  # standard errors for a rung to be kept; None: no number is enough

    @property
    def kept_zero_shot(self) -> bool:
        return self.alpha == 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"kept_zero_shot": self.kept_zero_shot}


def climb(
    probabilities: np.ndarray,
    labels: np.ndarray,
    neighbours: np.ndarray,
    alphas: Sequence[float] = RUNGS,
    strict: bool = False,
    shares: np.ndarray | None = None,
) -> Climb:
    """Walks up the ladder.

    Args:
        probabilities: [R + 1, N, K] of zero-shot and then of each rung.
        labels: [R + 1, N], the most probable class numbers.
        neighbours: [N, C] places of an image's look-alikes among the N.
        strict: ask for as much as of look-alikes that know little.
        shares: [K] of the images, where the user knows them.

    Look-alikes whose zero-shot classes hardly agree (of the tasks tried: 0.3 for letters and icons, 0.5 to 0.7 for
    digits) favour whatever is smooth, right or wrong, and must be very sure; where they agree, little is enough.
    """
    images = len(neighbours)
    if images < MIN_IMAGES or neighbours.shape[1] == 0:
        reason = f"{images} different images are too few to judge by; {MIN_IMAGES} are needed"
        return Climb(0.0, reason, images=images)
    agree = agreement(labels[0], neighbours, probabilities.shape[-1])
    needed = needed_of(agree, images, strict)
    kept, judge, reason = 0.0, 0, ""
    rungs: list[Rung] = []
    for number, alpha in enumerate(alphas, start=1):
        if not np.isfinite(probabilities[number].sum(axis=1, dtype=np.float64)).all():
            rungs.append(Rung(alpha, 0.0, 1.0, "refused"))
            reason = f"the predictions at {alpha:g} are not all numbers"
            break
        z, changed = audit(probabilities[judge], labels[judge], labels[number], neighbours, shares)
        outcome = "kept" if needed is not None and z > needed else "refused" if z < REFUSED else "undecided"
        rungs.append(Rung(alpha, z, changed, outcome))
        if outcome == "refused":
            reason = f"at {alpha:g} the look-alikes of the images that change class speak against the change"
            break
        if outcome == "kept":
            kept, judge = alpha, number
    if not reason and needed is None:
        reason = f"look-alikes share zero-shot's classes too rarely (kappa {agree:.2f}) to vouch for others"
    elif not reason and kept < alphas[-1]:
        same = all(rung.changed == 0 for rung in rungs if rung.alpha > kept)
        reason = "no image changes its class beyond it" if same else "beyond it the evidence is too weak"
    return Climb(kept, reason, rungs, images, agree, needed)


def needed_of(agree: float, images: int, strict: bool = False) -> float | None:
    """Standard errors that a rung needs from look-alikes that agree so often; None: no number is enough.

    Agreement counted on few images may be luck: 1 / sqrt(images), about its own standard error, is taken away.
    """
    surely = agree - images**-0.5
    if surely < IGNORANT:
        return None
    return NEEDED[0] if strict else float(np.interp(surely, KNOWING, NEEDED))


def agreement(labels: np.ndarray, neighbours: np.ndarray, classes: int) -> float:
    """How often two look-alikes have the same class of `labels` [N], as Cohen's kappa: 0 by chance, 1 always."""
    share = np.bincount(labels, minlength=classes) / len(labels)
    chance = float((share**2).sum())
    same = float((labels[neighbours] == labels[:, None]).mean())
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def audit(
    judge: np.ndarray, old: np.ndarray, new: np.ndarray, neighbours: np.ndarray, shares: np.ndarray | None = None
) -> tuple[float, float]:
    """(z, share of images that change class) of a step from classes `old` [N] to `new` [N].

    With J_i the mean of the judge's probabilities [N, K] over the look-alikes of image i, L_i = J_i / (mean J + RARE)
    scaled to sum 1 is the lift: how much more than usual they believe in a class. An image votes L_i(new class) -
    L_i(old class), 0 where its class stays; z is the votes' mean over its standard error.

    With `shares` [K], L_i is shares J_i / (mean J + RARE): without, feeding a class is held against a step, and where
    the classes are known to differ in size that is what a good one does.
    """
    changed = np.flatnonzero(old != new)
    if not len(changed):
        return 0.0, 0.0
    usual = judge.mean(axis=0, dtype=np.float64) + RARE
    if shares is not None:
        usual /= shares
    votes = np.zeros(len(judge))
    for start in range(0, len(changed), ROWS):
        rows = changed[start : start + ROWS]
        lift = judge[neighbours[rows]].mean(axis=1, dtype=np.float64) / usual
        lift /= lift.sum(axis=1, keepdims=True)
        at = np.arange(len(rows))
        votes[rows] = lift[at, new[rows]] - lift[at, old[rows]]
    spread = votes.std()
    z = float(votes.mean() / (spread / np.sqrt(len(votes)))) if spread > 0 else 0.0
    return z, len(changed) / len(judge)
