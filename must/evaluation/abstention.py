"""The probability below which no class should be named, chosen with labels.

Risk is the share of wrong classes among the images that get one, coverage the share of images that get one. The lowest
threshold whose risk is at most the target is chosen: it has the largest coverage. The risk at a threshold is bounded
from above with 95% confidence (Clopper and Pearson 1934), and thresholds are tried from the highest down until one
fails, so that the bound holds for the chosen one (Angelopoulos et al. 2021, "Learn then test", arXiv
2110.01052: fixed sequence testing).
"""

import math

import numpy as np

from must.evaluation.metrics import binomial_tail
from must.evaluation.result import Abstention

CONFIDENCE = 0.95  # of the bound
THRESHOLDS_TRIED = 100


def abstention(target: float, confidence: np.ndarray, correct: np.ndarray) -> Abstention:
    """`confidence`: top probabilities [N] of labelled images; `correct`: bool [N]. If no threshold keeps the target,
    `threshold` is None and `reason` says why."""
    images = len(confidence)
    if not images:
        return no_threshold(target, 0, "needs labels of images at random")
    ordered = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[ordered])
    best = no_threshold(target, images, "the surest images alone do not keep the target with so many labels")
    min_images = first_count(images, target)
    for threshold in np.unique(np.quantile(confidence, np.linspace(0, 1, THRESHOLDS_TRIED)))[::-1]:
        named = int((confidence >= threshold).sum())
        if named < min_images:
            continue
        errors = int(wrong[named - 1])
        bound = upper_bound(errors, named)
        if bound > target:
            break
        risk = errors / named
        best = Abstention(target, "labels", floor(threshold), named / images, risk, bound, "", images)
    return best


def first_count(images: int, target: float) -> int:
    """Images that the first threshold names: enough for the target to hold with a few errors. Independent of labels."""
    without_error = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-target))
    return min(3 * without_error, max(without_error, images // 2))


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
