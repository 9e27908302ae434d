"""The probability below which no class should be named, from images that look alike: no labels. N images, K classes.

Risk is the share of wrong classes among the images that get one. Look-alikes of a rightly named image mostly have its
class; those of a wrongly named one have another. So the share of look-alikes with the same class falls where errors
are. It is `top` among the surest quarter of the images, `chance` for two images at random, and in between
e = (top - share) / (top - chance) stands for the error rate. It is an estimate and promises nothing: what the surest
quarter and its look-alikes agree on in error counts as right, and a rightly named image between two classes as half
wrong. Look-alikes share zero-shot's errors, and adapting takes those apart first: nothing is estimated for a model that
is zero-shot's, or near it. docs/evaluation.md says how far the estimate was from the truth.
"""

import math
from typing import Any

import numpy as np

from must.method.select.ladder import agreement

TARGET = 0.05  # share of wrong classes among the named images
BINS = 20  # of equally many images, in which look-alikes' shares are averaged
SURE = 0.25  # share of the images that count as surely named
FEWEST = 200  # images below which look-alikes are not asked
KEPT = 0.8  # of an adaptation, below which the estimate was too low on most tasks
KNOWING = 0.2  # top - chance below which look-alikes know too little
WELL = 0.5  # agreement below which they err where zero-shot does: 20% and 27% wrong at 0.4 where 5% was said


def by_look_alikes(
    probabilities: np.ndarray, labels: np.ndarray, neighbours: np.ndarray, kept: float, target: float = TARGET
) -> dict[str, Any]:
    """A model's probabilities [N, K] and classes [N], and the images' look-alikes [N, C], as `look_alikes` gives them.

    `kept`: how much of an adaptation is in the model, from 0 (zero-shot) to 1.

    `threshold`, `coverage`, `risk` (the estimate) and `reason`; the first three are None where there is a reason.
    """
    images = len(labels)
    if images < FEWEST or not neighbours.size:
        return nothing(f"{images} images are too few to ask look-alikes; {FEWEST} are needed") | {"images": images}
    if kept < KEPT:
        how = f"with {kept:.0%} of its adaptation the model is near zero-shot" if kept else "the model is zero-shot's"
        return nothing(f"{how}, and look-alikes share too many of those errors to see them") | {"images": images}
    agree = agreement(labels, neighbours, probabilities.shape[-1])
    if agree - images**-0.5 < WELL:
        reason = f"look-alikes share the classes too rarely (kappa {agree:.2f}) to tell right from wrong"
        return nothing(reason) | {"images": images}
    confidence = probabilities.max(axis=-1).astype(np.float64)
    share = (labels[neighbours] == labels[:, None]).mean(axis=1)
    return from_shares(confidence, share, chance_of(labels), target) | {"images": images}


def from_shares(confidence: np.ndarray, share: np.ndarray, chance: float, target: float) -> dict[str, Any]:
    """`share` [N]: of each image's look-alikes, how many have its class; `chance`: of two images at random."""
    ordered = np.argsort(-confidence, kind="stable")
    top = float(share[ordered[: max(1, round(SURE * len(ordered)))]].mean())
    known = {"top": top, "chance": chance}
    if top - chance < KNOWING:
        return nothing("look-alikes know too little of these classes") | known
    parts = np.array_split(share[ordered], min(BINS, len(ordered)))
    error = rising(np.array([(top - part.mean()) / (top - chance) for part in parts]))
    error = np.clip(np.repeat(error, [len(part) for part in parts]), 0, 1)
    risk = np.cumsum(error) / np.arange(1, len(error) + 1)  # of naming the surest n images
    kept = np.flatnonzero(risk <= target)
    if not len(kept):
        return nothing("no threshold keeps the target") | known
    threshold = floor(confidence[ordered[kept[-1]]])
    named = int((confidence >= threshold).sum())
    return {
        "threshold": threshold,
        "coverage": named / len(confidence),
        "risk": float(risk[named - 1]),
        "bound": None,
        "reason": "",
    } | known


def nothing(reason: str) -> dict[str, Any]:
    return {"threshold": None, "coverage": None, "risk": None, "bound": None, "reason": reason}


def floor(threshold: float) -> float:
    """Six decimals, rounded down: the image whose probability it is stays named, in other arithmetic too."""
    return math.floor(float(threshold) * 1e6 - 1) / 1e6 if threshold > 2e-6 else 0.0


def chance_of(labels: np.ndarray) -> float:
    """How often two images at random have the same class."""
    frequencies = np.bincount(labels) / len(labels)
    return float((frequencies**2).sum())


def rising(values: np.ndarray) -> np.ndarray:
    """The nearest sequence that never falls (least squares; pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return np.concatenate([np.full(count, value) for value, count in blocks])
