"""The probability below which no class should be named, chosen with labels or with people's answers.

Risk is the share of wrong classes among the images that get one, coverage the share of images that get one. The lowest
threshold whose risk is at most the target is chosen: it has the largest coverage. The risk at a threshold is bounded
from above with 95% confidence (Clopper and Pearson 1934), and thresholds are tried from the highest down until one
fails, so that the bound holds for the chosen one (accept.py).
"""

import math
from dataclasses import dataclass

import numpy as np

from must.method.answers.accept import CONFIDENCE, Step, find_last, first_count
from must.method.answers.estimate import binomial_tail

THRESHOLDS_TRIED = 100


@dataclass(frozen=True)
class Abstention:
    """The probability below which no class should be named; None if there is no such threshold."""

    target: float
    by: str  # labels, answers, or none
    threshold: float | None
    coverage: float | None
    risk: float | None
    bound: float | None
    reason: str = ""
    images: int = 0


def abstention(target: float, confidence: np.ndarray, correct: np.ndarray, by: str = "labels") -> Abstention:
    """`confidence`: top probabilities [N] of images with labels, or with answers drawn at random;
    `correct`: bool [N]. If no threshold keeps the target, `threshold` is None and `reason` says why."""
    images = len(confidence)
    if not images:
        return no_threshold(target, 0, "needs labels of images at random")
    wrong = np.concatenate([[0], np.cumsum(~correct[np.argsort(-confidence, kind="stable")])])
    thresholds = np.unique(np.quantile(confidence, np.linspace(0, 1, THRESHOLDS_TRIED)))[::-1]
    named = [int((confidence >= threshold).sum()) for threshold in thresholds]
    steps = [Step(float(t), count, int(wrong[count])) for t, count in zip(thresholds, named, strict=True)]
    last = find_last(steps, first_count(images, target), lambda step: upper_bound(step.errors, step.answers) <= target)
    if not last:
        return no_threshold(target, images, "the surest images alone do not keep the target with so many labels")
    risk, bound = last.errors / last.answers, upper_bound(last.errors, last.answers)
    return Abstention(target, by, floor(last.threshold), last.answers / images, risk, bound, "", images)


def no_threshold(target: float, images: int, reason: str) -> Abstention:
    return Abstention(target, "none", None, None, None, None, reason, images)


def floor(threshold: float) -> float:
    """Rounded down to six decimals, so that the image with this probability gets a class on other hardware too."""
    return math.floor(float(threshold) * 1e6 - 1) / 1e6 if threshold > 2e-6 else 0.0


def upper_bound(errors: int, images: int) -> float:
    """Upper confidence bound of the error rate: the rate with P(at most `errors` of `images`) = 1 - CONFIDENCE."""
    if errors >= images:
        return 1.0
    low, high = errors / images, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, images, middle) > 1 - CONFIDENCE else (low, middle)
    return high
