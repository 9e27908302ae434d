"""When no class is named: the probability below which too many classes are wrong."""

from dataclasses import dataclass

import numpy as np

from must.answers.accuracy import compute_upper_bound
from must.answers.estimate import Step, count_fewest_answers, find_last

THRESHOLDS_TRIED = 100
ROOM = 1e-4  # a threshold is at most so much below the lowest probability that is to reach it


@dataclass(frozen=True)
class Abstention:
    """The probability below which no class should be named.

    Risk is the share of wrong classes among the images that get one, coverage the share of images that get one. The
    lowest threshold whose risk is at most the target is chosen: it has the largest coverage. The risk at a threshold is
    bounded from above with 95% confidence (Clopper and Pearson 1934), and thresholds are tried from the highest down
    until one fails, so that the bound holds for the chosen one."""

    target: float
    by: str = "none"  # labels or answers
    threshold: float | None = None  # None: there is no such threshold, and `reason` says why
    coverage: float | None = None
    risk: float | None = None
    bound: float | None = None
    reason: str = ""
    images: int = 0


def choose_abstention(
    target: float, confidence: np.ndarray, correct: np.ndarray, by: str = "labels", named: np.ndarray | None = None
) -> Abstention:
    """From the top probabilities [N] of images with labels, or with answers drawn at random; `correct`: bool [N];
    `named`: bool [N], those that get a class without a threshold; None: all."""
    every = len(confidence)
    if named is not None:
        confidence, correct = confidence[named], correct[named]
    images = len(confidence)
    if not images:
        return Abstention(target, reason="no image gets a class" if every else "needs labels of images at random")
    order = np.argsort(-confidence, kind="stable")
    wrong = np.concatenate([[0], np.cumsum(~correct[order])])
    thresholds = np.unique(np.quantile(confidence, np.linspace(0, 1, THRESHOLDS_TRIED)))[::-1]
    counts = [int((confidence >= threshold).sum()) for threshold in thresholds]
    steps = [Step(float(t), count, int(wrong[count])) for t, count in zip(thresholds, counts, strict=True)]
    last = find_last(
        steps,
        choose_first_count(images, target),
        lambda step: compute_upper_bound(int(step.errors), int(step.answers)) <= target,
    )
    if not last:
        reason = "too few labels, or too many wrong classes among the surest images"
        return Abstention(target, reason=reason, images=images)
    answers, errors = int(last.answers), int(last.errors)
    risk, bound = errors / answers, compute_upper_bound(errors, answers)
    threshold = place_threshold(*np.split(confidence[order], [answers]))
    return Abstention(target, by, threshold, answers / every, risk, bound, "", images)


def place_threshold(named: np.ndarray, others: np.ndarray) -> float:
    """Half-way between the probabilities of the images that get a class and the next lower one, at most ROOM below the
    first: other hardware and batch sizes change probabilities by millionths, and must not change who gets a class."""
    lowest = float(named.min())
    return max(0.0, (lowest + float(others.max(initial=lowest - 2 * ROOM))) / 2)


def choose_first_count(answers: int, risk: float) -> int:
    """Answers of the first test: enough to pass with a few errors. Independent of the answers' content."""
    fewest = count_fewest_answers(risk)
    return min(3 * fewest, max(fewest, 2 * answers // 5))
