"""Undecided is not refused: what would decide about a part of the way that look-alikes leave open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ERROR, POWER = 1.96, 0.84  # normal quantiles of 95% confidence and 80% power
ADVANTAGE = 0.3  # by which the new class is more often right than the old one, among the images that change, at least


class Beyond(NamedTuple):
    """A rung beyond the one that is kept; `differ`: share of images that it names otherwise."""

    alpha: float
    z: float
    needed: float
    differ: float


@dataclass(frozen=True)
class Undecided:
    """What is open, and about how much of what would close it.

    `alpha`: the rung with most evidence for its length, of those neither kept nor refused; `differ`: share of images
    that it names otherwise than the rung kept; `answers`: of a person, about those; `labels`: of images drawn at
    random, so that as many of those are among them; `images`: unlabeled ones, if the evidence grew as it has so far;
    None where no number would do.
    """

    alpha: float
    differ: float
    answers: int
    labels: int
    images: int | None


def what_would_decide(rungs: Sequence[Beyond], images: int, most: int) -> Undecided | None:
    """None where no image changes its class on any of the rungs.

    Args:
        images: that were looked at.
        most: images beyond which more make the evidence no stronger.
    """
    there = [rung for rung in rungs if rung.differ > 0]
    if not there:
        return None
    best = max(there, key=lambda rung: rung.z - rung.needed)
    answers = math.ceil(((ERROR + POWER) / ADVANTAGE) ** 2)
    more = math.ceil(images * (best.needed / best.z) ** 2) if best.z > 0 else most + 1
    return Undecided(
        best.alpha,
        best.differ,
        min(answers, math.ceil(best.differ * images)),
        math.ceil(answers / best.differ),
        more if more <= most else None,
    )


def decided_by(undecided: Undecided) -> str:
    """In words."""
    more = f", or about {undecided.images:,} unlabeled images" if undecided.images else ""
    return (
        f"undecided, not refused: at {undecided.alpha:.0%} of the way {undecided.differ:.1%} of the images change "
        f"class; about {undecided.answers:,} answers about those (must review), about {undecided.labels:,} "
        f"labels{more} would decide"
    )
