"""What a model's predictions say without labels: whether it collapsed. Shapes: N images, K classes."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from must.model.description import CheckResult

FEWEST = 50  # images; with fewer there are no warnings
ROUNDING = 0.01  # of the sum of an image's probabilities in half precision
COLLAPSED = 1 / 3  # ratio of the effective numbers of classes after and before; a lower one is a warning
DEAD = 0.005  # share of the images of a zero-shot class of which the model predicts none


class TopLabels(NamedTuple):
    labels: Tensor  # int64 [N], the most probable class; -1: none of the classes is more probable
    confidence: Tensor  # float [N], its probability

    @staticmethod
    def from_probabilities(probabilities: Tensor) -> TopLabels:
        """From [N, K]; what a row lacks of 1 is the probability of none of the classes."""
        return Guesses.of(probabilities).decide()


class Guesses(NamedTuple):
    """What is said of N images before it is decided where it is none of the classes."""

    labels: Tensor  # int64 [N], the most probable class
    confidence: Tensor  # float [N], its probability
    none: Tensor  # float [N], the probability of none of the classes; 0 up to ROUNDING

    @classmethod
    def of(cls, probabilities: Tensor) -> Self:
        """As of `TopLabels.from_probabilities`."""
        confidence, labels = probabilities.float().max(-1)
        none = 1 - probabilities.float().sum(-1)
        return cls(labels, confidence, none.where(none > ROUNDING, 0.0))

    def decide(self, margin: float = 0.0) -> TopLabels:
        """With the odds for none of the classes divided by exp(margin)."""
        none = self.none * math.exp(-margin)
        total = 1 - self.none + none
        shown = none > self.confidence
        return TopLabels(self.labels.where(~shown, -1), torch.where(shown, none, self.confidence) / total)


def compare_predictions(before: TopLabels, after: TopLabels, classes: list[str]) -> CheckResult:
    """The check without labels: how many classes a model predicts, and whether it collapsed. `before`, `after`: of the
    zero-shot and the adapted model for the same images.

    No number without labels was found that tells a model that gained from one that lost (benchmarks/README.md), so
    the check warns of collapse only."""
    counts = [torch.bincount(p.labels[p.labels >= 0], minlength=len(classes)) for p in (before, after)]
    images = len(before.labels)
    dead = (counts[0] > max(1, DEAD * images)) & (counts[1] == 0)
    effective = [count_effective(count) for count in counts]
    warnings = []
    if not bool(after.confidence.isfinite().all()):
        warnings.append("the model's probabilities are not finite numbers")
    elif images >= FEWEST and effective[1] < COLLAPSED * effective[0]:
        warnings.append(
            f"the model predicts few of the classes: effectively {effective[1]:.1f}, zero-shot {effective[0]:.1f}"
        )
    return CheckResult(
        images=images,
        changed=mean(before.labels != after.labels),
        confidence_before=mean(before.confidence),
        confidence_after=mean(after.confidence),
        effective_before=round(effective[0], 2),
        effective_after=round(effective[1], 2),
        dead_classes=[classes[k] for k in torch.nonzero(dead).flatten().tolist()],
        warnings=warnings,
    )


def count_effective(counts: Tensor) -> float:
    """exp(entropy) of the classes' shares, `counts` [K]: K for equal shares, 1 for one class."""
    shares = counts.double() / max(1, int(counts.sum()))
    return float(torch.special.entr(shares).sum().exp())


def mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 5) if len(values) else 0.0
