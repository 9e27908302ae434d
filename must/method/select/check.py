"""Compares an adapted model with the zero-shot model, without labels, on at most 2,000 images. N images, K classes.

Similar images mostly show the same class. The check computes how often an image's nearest neighbours, by the features
of the frozen zero-shot tower, have the image's class: before (zero-shot model) and after (adapted model).
"""

from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from must.method.model.provenance import CheckResult, Selection

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


def check_of(neighbours: Tensor, before: Predicted, after: Predicted, classes: list[str]) -> CheckResult:
    """`neighbours`: int64 [N, C], by the features of the frozen zero-shot tower; `before`, `after`: predictions of the
    zero-shot and the adapted model for the same images."""
    same = [agreement(predicted.labels, neighbours) for predicted in (before, after)]
    counts = [torch.bincount(predicted.labels, minlength=len(classes)) for predicted in (before, after)]
    images = len(before.labels)
    dead = (counts[0] > max(1, DEAD * images)) & (counts[1] == 0)
    check = CheckResult(
        images=images,
        agreement_before=mean(same[0]),
        agreement_after=mean(same[1]),
        warnings=[],
        error=round(float((same[1] - same[0]).std() / images**0.5), 5) if images > 1 else 0.0,
        confidence_before=mean(before.confidence),
        confidence_after=mean(after.confidence),
        changed=mean(before.labels != after.labels),
        dead_classes=[classes[k] for k in torch.nonzero(dead).flatten().tolist()],
    )
    return replace(check, warnings=warnings_of(check))


def warnings_of(check: CheckResult) -> list[str]:
    """Reasons against the model, one sentence each; none if there are too few images."""
    if check.images < FEWEST:
        return []
    reasons = []
    change = check.agreement_after - check.agreement_before
    if change < HARMED * check.error:
        reasons.append(f"similar images agree on a class less often than before ({change:+.1%} ± {check.error:.1%})")
    if check.confidence_after < UNSURE * check.confidence_before:
        reasons.append(f"the mean confidence fell from {check.confidence_before:.2f} to {check.confidence_after:.2f}")
    if check.dead_classes:
        names = ", ".join(check.dead_classes[:5]) + (", ..." if len(check.dead_classes) > 5 else "")
        reasons.append(f"{len(check.dead_classes)} classes are no longer predicted ({names})")
    return reasons


def selection_text(selection: Selection) -> str:
    """For the log: a line with alpha, one of the check, and one per warning."""
    lines, check = [f"alpha {selection.alpha:g} ({selection.by})"], selection.check
    if check:
        lines.append(
            f"check on {check.images:,} unlabeled images: {check.changed:.1%} change class; nearest neighbours share "
            f"a class in {check.agreement_before:.1%} before and {check.agreement_after:.1%} after "
            f"(± {check.error:.1%}); mean confidence {check.confidence_before:.2f} before and "
            f"{check.confidence_after:.2f} after"
        )
        lines += [f"warning: {reason}" for reason in check.warnings]
    return "\n".join(lines)


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
