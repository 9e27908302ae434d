"""What a model's predictions say without labels: whether it collapsed, and what of a class list to look at again.

Two kinds of findings are about names that do not fit the images:

- none: images that are like those for which people answered "none of the classes". A class may be missing.
- pair: two names that the zero-shot model gives to the same images, or whose texts are almost the same to its text
  encoder. They mean almost the same, or the model cannot tell them apart. Found without labels or answers.

How often they are right was measured on spoilt lists (benchmarks/README.md).

Shapes: N images, K classes, D numbers of the joint space.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from must.base.text import pluralize
from must.method.answers.answers_file import NO_CLASS
from must.method.model.description import CheckResult

FEWEST = 50  # images; with fewer there are no warnings
ROUNDING = 0.01  # of the sum of an image's probabilities in half precision
COLLAPSED = 1 / 3  # ratio of the effective numbers of classes after and before; a lower one is a warning
DEAD = 0.005  # share of the images of a zero-shot class of which the model predicts none
OVERLAP = 0.8  # cosine of two names' probabilities over the images
SAME_TEXT = 0.1  # 1 - cosine of two names' text embeddings, as a share of the names' median
SMALLEST = 8  # images that are enough to look for pairs
FEWEST_NONE = 2  # answers "none of the classes" that are a finding
EXAMPLES, MOST = 3, 10  # images of a finding; findings of a kind
BLOCK_NUMBERS = 1 << 25  # numbers of a block of images
ALIKE = 1e-3  # probabilities of a class that differ by less are equal


class TopLabels(NamedTuple):
    labels: Tensor  # int64 [N], the most probable class; -1: none of the classes is more probable
    confidence: Tensor  # float [N], its probability

    @classmethod
    def from_probabilities(cls, probabilities: Tensor) -> Self:
        """From [N, K]; what a row lacks of 1 is the probability of none of the classes."""
        confidence, labels = probabilities.float().max(-1)
        none = 1 - probabilities.float().sum(-1)
        shown = (none > confidence) & (none > ROUNDING)
        return cls(labels.where(~shown, -1), confidence.where(~shown, none))


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


@dataclass(frozen=True)
class Finding:
    """`kind`: none or pair; `images`: how many it is about; `rows`: of EXAMPLES of them, the clearest first; `answers`:
    how many besides have the answer "none of the classes"."""

    kind: str
    classes: tuple[int, ...]
    images: int
    rows: tuple[int, ...]
    answers: int = 0

    def to_dict(self, classes: list[str], sources: list[str]) -> dict[str, Any]:
        """For refined.json: classes and examples by name, and the finding in a line."""
        names, examples = [classes[k] for k in self.classes], [sources[row] for row in self.rows]
        if self.kind == "none":
            like = f"the model finds {pluralize(self.images, 'other image')} like them"
            text = f"{self.answers:,} images have the answer “none of the classes”, {like}: is a class missing?"
        else:
            text = (
                f"“{names[0]}” and “{names[1]}” are almost the same to the model: give them other words, or join them"
            )
        return {"kind": self.kind, "classes": names, "images": self.images, "examples": examples, "text": text}


def find_missing(labels: TopLabels, answered: Tensor, none: int) -> list[Finding]:
    """The images that are most probably none of the classes, if people said so of at least FEWEST_NONE. The surest of
    those without an answer come first.

    Args:
        labels: refined, of N images.
        answered: int64 [A], the rows of images with an answer, of which `none` are "none of the classes".
    """
    if none < FEWEST_NONE:
        return []
    shown = labels.labels == NO_CLASS
    others = shown.clone()
    others[answered] = False
    order = labels.confidence + others.float()  # an answered image has a confidence of 1, another one more than 1
    rows = order.where(shown, 0.0).argsort(descending=True, stable=True)[: min(EXAMPLES, int(shown.sum()))]
    return [Finding("none", (), int(others.sum()), tuple(rows.tolist()), none)]


def find_pairs(probabilities: Tensor, columns: Tensor) -> list[Finding]:
    """Pairs of names by the cosine of their columns of probabilities [N, K], or by that of their texts [D, K]."""
    N, K = probabilities.shape
    if N < SMALLEST or float((probabilities.amax(0) - probabilities.amin(0)).max()) < ALIKE:
        return []  # of few images, or of those that are all alike to the model, nothing is known
    product = torch.zeros(K, K, device=probabilities.device)
    for part in probabilities.split(max(1, BLOCK_NUMBERS // K)):
        product += part.float().T @ part.float()
    length = product.diagonal().sqrt().clamp(min=1e-12)
    gap = (1 - columns.float().T @ columns.float()).clamp(min=1e-12)
    usual = gap[~torch.eye(K, dtype=torch.bool, device=gap.device)].median() if K > 2 else 0.0
    strength = torch.maximum(product / (length[:, None] * length) / OVERLAP, SAME_TEXT * usual / gap).triu(1)
    values, cells = strength.flatten().topk(min(MOST, K * K))
    findings = []
    for value, cell in zip(values.tolist(), cells.tolist(), strict=True):
        a, b = divmod(cell, K)
        if value >= 1:
            either = probabilities[:, [a, b]].float()
            rows = either.amin(1).topk(min(EXAMPLES, N)).indices
            findings.append(Finding("pair", (a, b), round(float(either.sum())), tuple(rows.tolist())))
    return findings
