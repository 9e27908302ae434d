"""The audited ladder: how far from zero-shot towards the adapted weights it is safe to go.

Weights between the two, theta_0 + a (theta_T - theta_0), are tried in turn, a = 0.1, 0.2 ... 1. A rung is judged by
the rung kept so far and by zero-shot, never by itself: did an image's look-alikes believe in its new class before the
step was taken? A candidate cannot please these judges by becoming smooth, nor by feeding classes that are full already.
A first short step needs little evidence, a long one much. Pure functions.

Shapes: N images, K classes, C neighbours an image.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from must.method.select.mutual_information import renamed
from must.method.select.undecided import Beyond, Undecided, what_would_decide

RUNGS = tuple(round(0.1 * rung, 1) for rung in range(1, 11))
REFUSED = -2.0  # standard errors at which the way ends
SHORT = 0.1  # part of the way for which it is enough that look-alikes lean towards it: z above 0
NEEDED = 3.0  # standard errors that any further step needs, its judge having been trained,
SLOPE = 6.0  # and that all of the way needs at once, zero-shot judging; a part of it needs that part of them
RENAMED, STRICT = 0.02, 4.0
"""Share of images that on a rung only change the name of their class, above which any step to it needs so much."""
KNOWING, SUREST = 0.6, 0.25
"""How often look-alikes of the surest images must prefer their class to the runner-up, and the share that is surest."""
WITNESSES = 3_000  # images beyond which more of them make z no larger: its sign is surer then, not its worth
RARE = 1e-3  # probability added to a class's mean, so that a class that is never predicted has no infinite lift
MIN_IMAGES = 50
ROWS = 256  # images whose class probabilities are spread out at a time


@dataclass(frozen=True)
class Rung:
    """`z`: mean of the images' votes in standard errors, and `needed`, what it must be above. The judge is the rung to
    which the last step led or, where it has more beyond what is needed, zero-shot. `changed`: share of images whose
    class is not that rung's; `outcome`: kept, undecided or refused; `from_zero_shot`: z of all the way to it, zero-shot
    being the judge, which must be above 0."""

    alpha: float
    z: float
    changed: float
    outcome: str
    needed: float
    from_zero_shot: float


@dataclass(frozen=True)
class Climb:
    """`alpha`: what is kept, 0 for zero-shot; `reason`: why not more, in words."""

    alpha: float
    reason: str
    rungs: list[Rung] = field(default_factory=list)
    images: int = 0
    agreement: float | None = None  # of look-alikes in zero-shot's classes, chance taken away; nothing is decided by it
    preferred: float | None = None  # how often look-alikes of the surest images prefer their class to the runner-up
    undecided: Undecided | None = None

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
    shares: np.ndarray | None = None,
    length: float = 1.0,
) -> Climb:
    """Walks up the ladder.

    Args:
        probabilities: [R + 1, N, K] of zero-shot and then of each rung.
        labels: [R + 1, N], the most probable class numbers.
        neighbours: [N, C] places of an image's look-alikes among the N.
        shares: [K] of the images, where the user knows them.
        length: of the way, as a share of that from zero-shot to where training ended.
    """
    images = len(neighbours)
    if images < MIN_IMAGES or neighbours.shape[1] == 0:
        reason = f"{images} different images are too few to judge by; {MIN_IMAGES} are needed"
        return Climb(0.0, reason, images=images)
    classes = probabilities.shape[-1]
    know = preferred(probabilities[0], neighbours)
    knowing = know is None or knows(know, images)
    judge, reason = 0, ""  # the judge of steps: the last rung that a step has led to
    rungs: list[Rung] = []
    for number, alpha in enumerate(alphas, start=1):
        stands = alphas[judge - 1] if judge else 0.0
        needed, at_once = needed_of(alpha * length, stands * length), SLOPE * alpha * length
        if not np.isfinite(probabilities[number].sum(axis=1, dtype=np.float64)).all():
            rungs.append(Rung(alpha, 0.0, 1.0, "refused", needed, 0.0))
            reason = f"the predictions at {alpha:g} are not all numbers"
            break
        z, changed = audit(probabilities[judge], labels[judge], labels[number], neighbours, shares)
        whole = audit(probabilities[0], labels[0], labels[number], neighbours, shares)[0] if judge else z
        if min(z, whole) < REFUSED:
            rungs.append(Rung(alpha, z, changed, "refused", needed, whole))
            reason = f"at {alpha:g} the look-alikes of the images that change class speak against the change"
            break
        if max(z - needed, whole - at_once) > 0 and renamed(labels[0], labels[number], classes) > RENAMED:
            needed, at_once = max(needed, STRICT), max(at_once, STRICT)
        stepped = knowing and z > needed and whole > 0
        enough = stepped or (knowing and whole > at_once)
        if not stepped and whole - at_once > z - needed:
            z, needed = whole, at_once
        rungs.append(Rung(alpha, z, changed, "kept" if enough else "undecided", needed, whole))
        judge = number if stepped else judge
    if reason:  # what was kept on little evidence needs more of such a way
        weak = [rung.outcome == "kept" and rung.z <= NEEDED for rung in rungs]
        rungs = [replace(r, outcome="undecided") if is_weak else r for r, is_weak in zip(rungs, weak, strict=True)]
    at = max((number for number, rung in enumerate(rungs, start=1) if rung.outcome == "kept"), default=0)
    kept = alphas[at - 1] if at else 0.0
    beyond = [
        Beyond(rung.alpha, rung.z, rung.needed, float((labels[n] != labels[at]).mean()))
        for n, rung in enumerate(rungs, start=1)
        if n > at and rung.outcome == "undecided"
    ]
    undecided = what_would_decide(beyond, images, WITNESSES)
    if not reason and not knowing:
        reason = (
            f"look-alikes of the surest images prefer their class to the runner-up in {know:.0%}: they know too little"
        )
    elif not reason and kept < alphas[-1]:
        reason = "beyond it the evidence is too weak" if undecided else "no image changes its class beyond it"
    agree = agreement(labels[0], neighbours, classes)
    return Climb(kept, reason, rungs, images, agree, know, undecided)


def needed_of(alpha: float, kept: float) -> float:
    """Standard errors that a step from the share `kept` of the way to the share `alpha` needs."""
    return 0.0 if alpha <= SHORT + 1e-9 and not kept else max(NEEDED, SLOPE * (alpha - kept))


def agreement(labels: np.ndarray, neighbours: np.ndarray, classes: int) -> float:
    """How often two look-alikes have the same class of `labels` [N], as Cohen's kappa: 0 by chance, 1 always."""
    share = np.bincount(labels, minlength=classes) / len(labels)
    chance = float((share**2).sum())
    same = float((labels[neighbours] == labels[:, None]).mean())
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def preferred(probabilities: np.ndarray, neighbours: np.ndarray) -> float | None:
    """How often the look-alikes of the images that zero-shot is surest of prefer their class to the runner-up, as the
    ladder counts (by lift): 0.5 where they know nothing, however many classes there are. None with one class."""
    if probabilities.shape[1] < 2:
        return None
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[: max(1, round(SUREST * len(probabilities)))]
    runner_up, first = np.argsort(probabilities[surest], axis=1, kind="stable")[:, -2:].T
    usual = probabilities.mean(axis=0, dtype=np.float64) + RARE
    heard = 0
    for start in range(0, len(surest), ROWS):
        rows = slice(start, start + ROWS)
        lift = probabilities[neighbours[surest[rows]]].mean(axis=1, dtype=np.float64) / usual
        at = np.arange(len(lift))
        heard += int((lift[at, first[rows]] > lift[at, runner_up[rows]]).sum())
    return heard / len(surest)


def knows(share: float, images: int) -> bool:
    """Whether look-alikes know enough to judge: `preferred`, of so many images, less its standard error."""
    return share - (share * (1 - share) / max(1, round(SUREST * images))) ** 0.5 >= KNOWING


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
    count = min(len(votes), WITNESSES) if votes.mean() > 0 else len(votes)
    z = float(votes.mean() / spread * np.sqrt(count)) if spread > 0 else 0.0
    return z, len(changed) / len(judge)
