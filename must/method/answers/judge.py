"""Answers in, a decision out: which rung is kept, and whether more answers are worth a person's time.

Shapes: T answers in the order of the draws, A candidates: zero-shot, then the rungs.
"""

from dataclasses import dataclass

import numpy as np

from must.method.answers.bets import Draws

ERROR = 0.05  # chance that a rung is called better than zero-shot and is not, however often one looks
NEAR = 0.01  # gain, as a share of the images, for which nobody is asked
GRID = 120  # values of a gain that the ends of what is possible are looked for among
EARLY, AHEAD = 10, 2_000  # answers before which nothing is foretold, and beyond which neither

BETTER, NONE, OPEN = "better", "none", "open"
NO_CLASS, UNSURE = -1, -2
"""In the place of a class's number: the picture shows none of the classes; the person could not tell."""


@dataclass(frozen=True)
class Verdict:
    """`outcome`: better, `candidate` is better than zero-shot; none, no rung is a point better than zero-shot; open,
    nobody can say yet. `settled`: more answers are not worth the time; with `better`, no other rung is a point better.

    `gain` of the candidate over zero-shot and its ends `low` and `high`, each sure to 95%, are shares of all images;
    where the outcome is not `better`, they are of the rung that has most evidence for it, `leading`. `sure`: how far
    the evidence has come towards 95%, from 0 to 1. `left`: about how many answers are needed still, None: nobody can
    say.
    """

    outcome: str
    candidate: int
    leading: int
    settled: bool
    answers: int
    unsure: int
    gain: float
    low: float
    high: float
    sure: float
    left: int | None


def judged(
    labels: np.ndarray,
    truth: np.ndarray,
    chances: np.ndarray,
    promise: np.ndarray,
    least: np.ndarray,
    images: int,
    differing: np.ndarray,
    with_ends: bool = True,
) -> Verdict:
    """The verdict of the answers so far. A person who could not tell speaks for nobody.

    Args:
        labels: int [A, T], the candidates' classes of the pictures answered, in the order of the draws.
        truth: int [T], the class a person saw, NO_CLASS or UNSURE.
        chances, images: as of Draws.
        promise: [A - 1] of sum 1, by which the rungs share what may go wrong.
        least: [A, A], the smallest weight of a picture on which two candidates have different classes.
        differing: int [A, A], pictures of the whole pool on which they have.
        with_ends: else `low` and `high` are what is possible, not what is likely, and it takes a tenth of the time.
    """
    right = (labels == truth).T.astype(np.float64)  # [T, A]
    differences = right[:, :, None] - right[:, None, :]  # [T, A, A]: the first less the second
    unseen = differing - (labels[:, None, :] != labels[None, :, :]).sum(axis=-1)
    draws = Draws.of(differences, chances, least, images, unseen)
    gains = draws.mean[:, 0]
    evidence = together(draws.against_at_most(0.0)[1:, 0], promise)
    short = draws.against_at_least(NEAR)  # [A, A]: against the first being a point better than the second
    proven = np.flatnonzero(evidence >= 1 / ERROR) + 1
    leading = int(evidence.argmax()) + 1
    if len(proven):
        leading = int(proven[gains[proven].argmax()])
        others = np.delete(short[1:, leading], leading - 1)
        outcome, towards = BETTER, float(others.min(initial=np.inf))
    else:
        towards = float(short[1:, 0].min())
        outcome = NONE if towards >= 1 / ERROR else OPEN
    nearest = towards if len(proven) else max(towards, float(evidence.max()))
    low, high = float(draws.low[leading, 0]), float(draws.high[leading, 0])
    if with_ends:
        low, high = ends(draws.at(slice(1, None), 0), leading - 1, promise)
    return Verdict(
        outcome=outcome,
        candidate=leading if outcome == BETTER else 0,
        leading=leading,
        settled=towards >= 1 / ERROR,
        answers=len(truth),
        unsure=int((truth == UNSURE).sum()),
        gain=float(gains[leading]),
        low=low,
        high=high,
        sure=1.0 if outcome != OPEN else min(0.99, max(0.0, float(np.log(nearest) / np.log(1 / ERROR)))),
        left=foretold(len(truth), nearest),
    )


def ends(gains: Draws, rung: int, promise: np.ndarray) -> tuple[float, float]:
    """(low, high) of the gain of one rung, numbered from 0: each with 95%, all rungs having been looked at, so that the
    low end is at least 0 just where the rung is called better."""
    low, high = float(gains.low[rung]), float(gains.high[rung])
    means = np.unique([*np.linspace(low, high, GRID), min(max(0.0, low), high)])
    each = Draws(gains.values[..., None], gains.known[..., None], gains.reach[..., None],
                 gains.low[:, None], gains.high[:, None])  # fmt: skip
    below, above = each.against_at_most(means).T, each.against_at_least(means).T  # [M, R]
    possible = [mean for mean, found in zip(means, below, strict=True) if together(found, promise)[rung] < 1 / ERROR]
    if possible:
        low = max(low, means[max(np.searchsorted(means, possible[0]) - 1, 0)])
    possible = [mean for mean, found in zip(means, above, strict=True) if together(found, promise)[rung] < 1 / ERROR]
    if possible:
        high = min(high, means[min(np.searchsorted(means, possible[-1]) + 1, len(means) - 1)])
    return float(low), float(max(low, high))


def together(evidence: np.ndarray, promise: np.ndarray) -> np.ndarray:
    """[R]: the evidence for each rung once it is taken into account that all were looked at.

    It is the least of the weighted means over all sets of rungs that a rung is in (closed testing with means, Vovk and
    Wang 2021): rungs that resemble one another, as ours do, hardly cost one another anything.
    """
    found = np.zeros(len(evidence))
    order = np.argsort(evidence, kind="stable")
    for rung, (value, share) in enumerate(zip(evidence, promise, strict=True)):
        rest = order[order != rung]
        if not share or np.isinf(value):
            found[rung] = value if share else 0
            continue
        finite = rest[np.isfinite(evidence[rest])]
        money = share * value + np.concatenate([[0], np.cumsum(promise[finite] * evidence[finite])])
        found[rung] = (money / (share + np.concatenate([[0], np.cumsum(promise[finite])]))).min()
    return found


def foretold(answers: int, evidence: float) -> int | None:
    """About how many more answers take it to 95%, if evidence grows as it has."""
    if evidence >= 1 / ERROR:
        return 0
    if answers < EARLY or evidence <= 1.2:
        return None
    left = answers * (np.log(1 / ERROR) / np.log(evidence) - 1)
    return int(np.ceil(left)) if left < AHEAD else None
