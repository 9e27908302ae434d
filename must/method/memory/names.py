"""Names that do not fit the images, found without labels: what of a class list to look at again.

Two kinds of findings, both from one pass of the zero-shot model over the unlabeled images:

- group: similar images that are less similar to every name than images usually are. A class may be missing.
- pair: two names that the model gives to the same images. They mean almost the same, or the model cannot tell them
  apart.

How often they are right was measured on spoilt lists (docs/memory.md).

Shapes: N images, K classes, C neighbours of an image, V numbers a vector, G groups.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from must.method.memory.propagate import BLOCK_NUMBERS
from must.method.model.vectors import neighbour_weights

MISFIT = 1.25  # standard deviations of the images' best cosine, times the group's coherence
OVERLAP = 0.8  # cosine of two names' probabilities over the images
GROUPS_A_NAME = 2
SMALLEST_GROUP, MEAN_GROUP = 8, 15  # images: that a finding is about, and of the groups at least on average
GROUPED, GROUP_ROUNDS = 10_000, 15  # images that the groups are made from; rounds of k-means
EXAMPLES, MOST = 3, 10  # images of a finding; findings of a kind


@dataclass(frozen=True)
class Finding:
    """`kind`: group or pair; `images`: how many it is about; `rows`: of EXAMPLES of them, the clearest first;
    `strength`: the measure divided by its limit, 1 or more."""

    kind: str
    classes: tuple[int, ...]
    images: int
    rows: tuple[int, ...]
    strength: float

    def to_dict(self, classes: list[str], sources: list[str]) -> dict[str, Any]:
        """For refined.json: classes and examples by name, and the finding in a line."""
        names, examples = [classes[k] for k in self.classes], [sources[row] for row in self.rows]
        return {
            "kind": self.kind,
            "classes": names,
            "images": self.images,
            "examples": examples,
            "text": self.describe(classes),
        }

    def describe(self, classes: list[str]) -> str:
        """One line."""
        names = [f"“{classes[k]}”" for k in self.classes]
        if self.kind == "group":
            return f"{self.images:,} similar images fit none of the names well: is a class missing?"
        return f"{names[0]} and {names[1]} get the same images: give them other words, or join them"


def find_misfits(probabilities: Tensor, fit: Tensor, vectors: Tensor, near: tuple[Tensor, Tensor]) -> list[Finding]:
    """The strongest finding of each kind first, then the second ones, and so on.

    Args:
        probabilities: [N, K], of the zero-shot model.
        fit: float32 [N], the largest logit of each image.
        vectors: [N, V], unit vectors.
        near: as of `nearest(vectors)`.
    """
    P, fit = probabilities.to(vectors.device), fit.to(vectors.device)
    kinds = find_groups(fit, vectors, near, P.shape[1]), find_pairs(P)
    ranked = [(rank, finding) for kind in kinds for rank, finding in enumerate(kind[:MOST])]
    return [finding for _, finding in sorted(ranked, key=lambda pair: pair[0])]


def find_groups(fit: Tensor, vectors: Tensor, near: tuple[Tensor, Tensor], names: int) -> list[Finding]:
    """Groups whose mean fit is far below the median of the groups, and whose neighbours are in the group as well."""
    weights = neighbour_weights(near[1])
    centres = make_groups(vectors, names)
    parts = [(part.float() @ centres.T).max(1) for part in vectors.split(GROUPED)]
    group, closeness = (torch.cat(values) for values in zip(*((p.indices, p.values) for p in parts), strict=True))
    sizes = group.bincount(minlength=len(centres)).float()

    def average(values: Tensor) -> Tensor:
        return torch.zeros_like(sizes).index_add_(0, group, values) / sizes.clamp(min=1)

    coherence = average((weights * (group[near[0]] == group[:, None])).sum(1))
    enough, means = sizes >= SMALLEST_GROUP, average(fit)
    if int(enough.sum()) < 3:  # no median to compare with
        return []
    strength = (means[enough].median() - means) / fit.std().clamp(min=1e-12) * coherence / MISFIT
    findings = []
    for g in torch.where(enough, strength, 0).argsort(descending=True, stable=True).tolist():
        if strength[g] < 1 or not enough[g]:
            break
        clearest = torch.where(group == g, closeness, -torch.inf).topk(EXAMPLES).indices
        findings.append(Finding("group", (), int(sizes[g]), tuple(clearest.tolist()), float(strength[g])))
    return findings


def make_groups(vectors: Tensor, names: int) -> Tensor:
    """Float32 [G, V], the unit centres of k-means on at most GROUPED images at even intervals."""
    rows = torch.linspace(0, len(vectors) - 1, min(len(vectors), GROUPED), device=vectors.device).long()
    sample, generator = vectors[rows].float(), torch.Generator().manual_seed(0)
    first = 0
    centres, distance = [sample[first]], 1 - sample @ sample[first]
    for _ in range(max(1, min(GROUPS_A_NAME * names, len(sample) // MEAN_GROUP)) - 1):  # k-means++
        first = int(torch.multinomial(distance.clamp(min=1e-6).square().cpu(), 1, generator=generator))
        centres.append(sample[first])
        distance = torch.minimum(distance, 1 - sample @ sample[first])
    values = torch.stack(centres)
    for _ in range(GROUP_ROUNDS):
        values = F.normalize(torch.zeros_like(values).index_add_(0, (sample @ values.T).argmax(1), sample), dim=1)
    return values


def find_pairs(probabilities: Tensor) -> list[Finding]:
    """Pairs of names by the cosine of their columns of probabilities [N, K]."""
    N, K = probabilities.shape
    product = torch.zeros(K, K, device=probabilities.device)
    for part in probabilities.split(max(1, BLOCK_NUMBERS // K)):
        product += part.float().T @ part.float()
    length = product.diagonal().sqrt().clamp(min=1e-12)
    strength = (product / (length[:, None] * length)).triu(1) / OVERLAP
    values, cells = strength.flatten().topk(min(MOST, K * K))
    findings = []
    for value, cell in zip(values.tolist(), cells.tolist(), strict=True):
        a, b = divmod(cell, K)
        if value >= 1:
            either = probabilities[:, [a, b]].float()
            rows = either.amin(1).topk(min(EXAMPLES, N)).indices
            findings.append(Finding("pair", (a, b), round(float(either.sum())), tuple(rows.tolist()), value))
    return findings
