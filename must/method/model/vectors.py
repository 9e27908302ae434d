"""Vectors of images, whose cosine says how similar two images are.

An image's vector joins two unit vectors: the whitened tokens of the tower's last full block (its prefix tokens, and its
patches averaged on a 4 x 4 grid), and the whitened final embedding; the cosine of two vectors is TOKENS_SHARE times the
cosine of the first plus the rest times that of the second. Whitening divides each
principal component by its standard deviation, so that frequent differences (brightness, position) weigh no more than
rare ones.

Shapes: B or N images, T tokens, L patches, W width, D embedding, G cells of the grid, P components, V numbers a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.method.model.towers import Tower

TOKEN_GRID = 4  # cells per side, over which patches are averaged
TOKENS_SHARE = 0.7  # of a cosine, from the tokens
COMPONENTS = 128  # principal components of each of the two parts
SMALLEST_SPREAD = 3e-4  # of the largest: below it a component is mostly the rounding of float32, and is left out
FITTED = 2_000  # images that the components are computed from
ROWS, COSINES = 1_024, 1 << 27  # images that are compared with all others at a time, at most; and their cosines
NEIGHBOURS = 10
SAME_IMAGE = 0.9999  # a cosine above it: the same image
NEAR = (
    0.5,
    2.2,
)  # above 0.5 + 2.2 / sqrt(V): near copies, which are no independent witnesses; few numbers agree by chance
SHARPNESS = 5.0  # a neighbour has weight exp(5 (cosine - 1))


class Whitening(nn.Module):
    """x [B, C] -> unit vectors [B, P]: (x - mean) projected on the principal components, each of variance 1.

    The projection is stored in half precision and applied in float32."""

    projection: Tensor  # float16 [C, P]
    offset: Tensor  # float32 [P], the projected mean

    def __init__(self, projection: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("projection", projection)
        self.register_buffer("offset", offset)

    @classmethod
    def fit(cls, values: Tensor) -> Whitening:
        """From [N, C], of at most FITTED images at even intervals. P is COMPONENTS, or a quarter of the images if that
        is less."""
        images = len(values)
        rows = torch.linspace(0, images - 1, min(images, FITTED), device=values.device).long()
        sample = values[rows].double()
        mean = sample.mean(0)
        spread, axes = find_components(sample - mean)
        count = max(1, min(COMPONENTS, len(sample) // 4))
        strong = spread[:count] > SMALLEST_SPREAD * spread[0].clamp(min=1e-30)
        scale = len(sample) ** 0.5 / spread[:count].clamp(min=1e-30) * strong
        projection = (axes[:count] * scale[:, None]).T
        largest = projection.abs().amax(0).clamp(min=1e-30)
        # Columns are scaled to fit half precision; `normalize` in `forward` needs their ratios, which `scale` keeps.
        projection = (projection / largest.max()).half()
        return cls(projection, (mean @ projection.double()).float())

    def forward(self, values: Tensor) -> Tensor:
        return F.normalize(values.float() @ self.projection.float() - self.offset, dim=-1)


def find_components(centred: Tensor) -> tuple[Tensor, Tensor]:
    """(singular values, falling; principal axes in rows) of float64 [M, C], by the eigenvectors of the smaller of its
    two products with itself: faster than a singular value decomposition, the more so for C much larger than M."""
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    spread = values.flip(0).clamp(min=0).sqrt()
    axes = vectors.flip(1).T
    return spread, axes @ centred / spread.clamp(min=1e-30)[:, None] if wide else axes


def grid_cells(patches: int) -> Tensor:
    """Float32 [G, L]: the weights of the mean over each cell of the grid; one cell if patches form no square."""
    side = round(patches**0.5)
    if side * side != patches:
        return torch.full((1, patches), 1 / patches)
    cells = min(TOKEN_GRID, side)
    axis = torch.zeros(cells, side)
    for cell in range(cells):  # as adaptive average pooling
        start, end = cell * side // cells, -(-(cell + 1) * side // cells)
        axis[cell, start:end] = 1 / (end - start)
    return torch.einsum("ay,bx->abyx", axis, axis).reshape(cells * cells, patches)


def flatten_tokens(tower: Tower, tokens: Tensor) -> Tensor:
    """Float32 [B, (T - L + G) W]: the prefix tokens, and the patches' means over the grid's cells, of [B, T, W]."""
    patches = tower.patches(tokens)
    prefix = tokens[:, : tokens.shape[1] - patches.shape[1]]
    cells = grid_cells(patches.shape[1]).to(tokens.device)
    return torch.cat([prefix.float(), cells @ patches.float()], 1).flatten(1)


def join_vectors(tokens: Tensor, embedding: Tensor) -> Tensor:
    """Unit vectors [B, V] of the two parts' unit vectors."""
    return torch.cat([TOKENS_SHARE**0.5 * tokens, (1 - TOKENS_SHARE) ** 0.5 * embedding], 1)


def nearest(values: Tensor, count: int = NEIGHBOURS, start: int = 0) -> tuple[Tensor, Tensor]:
    """(int64 [N, C] numbers of the most similar other images, best first; float32 [N, C] their cosines); of the images
    from `start` on. `values`: [N, V], unit vectors."""
    count = max(min(count, len(values) - 1), 0)
    numbers = torch.zeros(len(values), count, dtype=torch.int64, device=values.device)
    cosines = torch.zeros(len(values), count, device=values.device)
    size = max(1, min(ROWS, COSINES // max(1, len(values))))
    for first in range(start, len(values) if count else 0, size):
        rows = slice(first, first + size)
        similar = values[rows] @ values.T
        row = torch.arange(len(similar), device=values.device)
        similar[row, row + first] = -torch.inf
        cosines[rows], numbers[rows] = similar.topk(count, dim=1)
    return numbers[start:], cosines[start:]


def find_groups(values: Tensor) -> Tensor:
    """Int64 [N]: groups of near copies, each named by the row of its first image. An image joins a group if its cosine
    with the group's first image is above the limit of NEAR, else it begins a group. `values`: [N, V], unit vectors."""
    images, device = len(values), values.device
    limit = min(NEAR[0] + NEAR[1] / values.shape[1] ** 0.5, SAME_IMAGE)
    groups = torch.arange(images, device=device)
    first = groups[:0]
    for rows in torch.arange(images, device=device).split(max(1, min(ROWS, COSINES // max(1, images)))):
        if len(first):
            cosines, places = (values[rows] @ values[first].T).max(1)
            groups[rows] = first[places].where(cosines > limit, rows)
            rows = rows[cosines <= limit]
        similar = (values[rows] @ values[rows].T > limit).triu(1).cpu()
        begins = torch.ones(len(rows), dtype=torch.bool)
        for row in similar.any(1).nonzero().flatten().tolist():
            if begins[row]:
                groups[rows[similar[row] & begins]] = rows[row]
                begins &= ~similar[row]
        first = torch.cat([first, rows[begins]])
    return groups


class Neighbours(NamedTuple):
    """The neighbours of N images in G groups of near copies. A group is represented by its first image."""

    first: Tensor  # int64 [G], the row of each group's first image
    groups: Tensor  # int64 [N], the group of each image, 0 to G - 1
    numbers: Tensor  # int64 [G, C], the most similar other groups, best first
    cosines: Tensor  # float32 [G, C], of their first images


def nearest_groups(values: Tensor) -> Neighbours:
    """As `nearest`, of groups of near copies. `values`: [N, V], unit vectors."""
    first, groups = find_groups(values).unique(return_inverse=True)
    return Neighbours(first, groups, *nearest(values[first]))


def separate(near: Neighbours, values: Tensor, rows: Tensor) -> Neighbours:
    """Each of the images `rows` [R] becomes a group of its own, the last ones, unless it is the first of its group."""
    rows = rows[near.first[near.groups[rows]] != rows]
    count = len(near.first)
    first, groups = torch.cat([near.first, rows]), near.groups.clone()
    new = groups[rows] = torch.arange(count, len(first), device=rows.device)
    found = nearest(values[first], start=count)
    parts = list[tuple[Tensor, Tensor]]()
    for part in torch.arange(count, device=rows.device).split(ROWS):
        cosines = torch.cat([near.cosines[part], values[near.first[part]] @ values[rows].T], 1)
        cosines, places = cosines.topk(found[0].shape[1], dim=1)
        parts.append((torch.cat([near.numbers[part], new.expand(len(part), -1)], 1).gather(1, places), cosines))
    numbers, cosines = (torch.cat(columns) for columns in zip(*parts, found, strict=True))
    return Neighbours(first, groups, numbers, cosines)


def neighbour_weights(cosines: Tensor) -> Tensor:
    """Weights [N, C], rows of sum 1, from the `cosines` [N, C] of `nearest`."""
    weights = torch.exp(SHARPNESS * (cosines - 1))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
