"""Compares an adapted model with the zero-shot model, without labels, on at most 2,000 images. N images, K classes.

Similar images mostly show the same class. The check computes how often an image's nearest neighbours, by the features
of the frozen zero-shot tower, have the image's class: before (zero-shot model) and after (adapted model).
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

CHECKED_IMAGES = 2_000
FEWEST = 50  # images; with fewer there are no warnings
HARMED = -2.0  # standard errors; a larger fall of the agreement is a warning
UNSURE = 0.6  # ratio of the mean confidences after and before; a lower one is a warning
DEAD = 0.005  # share of the images of a zero-shot class; the model predicting none of them is a warning


class Predicted(NamedTuple):
    labels: Tensor  # int64 [N], the most probable class
    confidence: Tensor  # float [N], its probability

    @classmethod
    def of(cls, probabilities: Tensor) -> Self:
        """From [N, K]."""
        confidence, labels = probabilities.float().max(-1)
        return cls(labels, confidence)


@dataclass(frozen=True)
class Check:
    """Shares are from 0 to 1; `error` is the standard error of the agreement's change."""

    images: int
    agreement_before: float
    agreement_after: float
    error: float
    confidence_before: float
    confidence_after: float
    changed: float  # share of the images whose class is not the zero-shot class
    dead_classes: list[str]  # predicted by the zero-shot model and not by the adapted one

    @classmethod
    def of(cls, neighbours: Tensor, before: Predicted, after: Predicted, classes: list[str]) -> Self:
        """Args:
        neighbours: int64 [N, C], by the features of the frozen zero-shot tower.
        before, after: predictions of the zero-shot and the adapted model for the same images.
        """
        same = [agreement(predicted.labels, neighbours) for predicted in (before, after)]
        counts = [torch.bincount(predicted.labels, minlength=len(classes)) for predicted in (before, after)]
        images = len(before.labels)
        dead = (counts[0] > max(1, DEAD * images)) & (counts[1] == 0)
        return cls(
            images=images,
            agreement_before=mean(same[0]),
            agreement_after=mean(same[1]),
            error=round(float((same[1] - same[0]).std() / images**0.5), 5) if images > 1 else 0.0,
            confidence_before=mean(before.confidence),
            confidence_after=mean(after.confidence),
            changed=mean(before.labels != after.labels),
            dead_classes=[classes[k] for k in torch.nonzero(dead).flatten().tolist()],
        )

    @property
    def warnings(self) -> list[str]:
        """Reasons against the model, one sentence each; none if there are too few images."""
        if self.images < FEWEST:
            return []
        reasons = []
        change = self.agreement_after - self.agreement_before
        if change < HARMED * self.error:
            reasons.append(f"similar images agree on a class less often than before ({change:+.1%} ± {self.error:.1%})")
        if self.confidence_after < UNSURE * self.confidence_before:
            reasons.append(f"the mean confidence fell from {self.confidence_before:.2f} to {self.confidence_after:.2f}")
        if self.dead_classes:
            names = ", ".join(self.dead_classes[:5]) + (", ..." if len(self.dead_classes) > 5 else "")
            reasons.append(f"{len(self.dead_classes)} classes are no longer predicted ({names})")
        return reasons

    @property
    def passed(self) -> bool:
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warnings": self.warnings}

    def text(self) -> str:
        """One line for the log."""
        return (
            f"check on {self.images:,} unlabeled images: {self.changed:.1%} change class; nearest neighbours share a "
            f"class in {self.agreement_before:.1%} before and {self.agreement_after:.1%} after (± {self.error:.1%}); "
            f"mean confidence {self.confidence_before:.2f} before and {self.confidence_after:.2f} after"
        )


def agreement(labels: Tensor, neighbours: Tensor) -> Tensor:
    """Float32 [N]: the share of each image's nearest neighbours [N, C] that have its class of `labels` [N]."""
    return (labels[neighbours] == labels[:, None]).float().mean(1) if neighbours.numel() else torch.zeros(len(labels))


def agreement_gain(before: Tensor, after: Tensor, neighbours: Tensor) -> float:
    """The gain in agreement of nearest neighbours [N, C], from labels `before` [N] to `after`, in standard errors."""
    gain = agreement(after, neighbours) - agreement(before, neighbours)
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) / error if error else 0.0


def mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 4) if len(values) else 0.0
