"""Nearest neighbours by cosine of whitened features, with matrix products. N images, D numbers, C neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
COMPONENTS = 128  # principal components that are compared
FITTED = 2_000  # images that the components are computed from
ROWS = 1_024  # images that are compared with all others at a time: ROWS x N numbers


def whitened(features: Tensor, components: int = COMPONENTS) -> Tensor:
    """Unit vectors float32 [N, P]: coordinates on the first principal components, each divided by its standard
    deviation, so that frequent differences (brightness, position) weigh no more than rare ones.

    P is `components`, or a quarter of the number of images if that is less.
    `features`: [N, D], any floating type."""
    images = len(features)
    sample = features[torch.linspace(0, images - 1, min(images, FITTED), device=features.device).long()].double()
    mean = sample.mean(0)
    _, spread, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    count = max(1, min(components, len(sample) // 4))
    nonzero = spread[:count] > 1e-6 * spread[0].clamp(min=1e-30)
    scale = len(sample) ** 0.5 / spread[:count].clamp(min=1e-30) * nonzero
    project = (axes[:count] * scale[:, None]).T.float()
    values = [(rows.float() - mean.float()) @ project for rows in features.split(65_536)]
    return F.normalize(torch.cat(values), dim=1)


def nearest(values: Tensor, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """(int64 [N, C] numbers of the most similar other images, best first; float32 [N, C] their cosines).
    `values`: float32 [N, D], unit vectors, as of `whitened`."""
    count = max(min(count, len(values) - 1), 0)
    numbers = torch.zeros(len(values), count, dtype=torch.int64, device=values.device)
    cosines = torch.zeros(len(values), count, device=values.device)
    for start in range(0, len(values) if count else 0, ROWS):
        rows = slice(start, start + ROWS)
        similar = values[rows] @ values.T
        row = torch.arange(len(similar), device=values.device)
        similar[row, row + start] = -torch.inf
        cosines[rows], numbers[rows] = similar.topk(count, dim=1)
    return numbers, cosines
