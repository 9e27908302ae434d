"""The memory: what is known about the unlabeled images, as the model's last layer; and the vectors that it compares.

An image's vector joins two unit vectors: the whitened tokens of the tower's last full block (its prefix tokens, and its
patches averaged on a 4 x 4 grid), and the whitened final embedding. The cosine of two vectors says how similar two
images are: it is TOKENS_SHARE times the cosine of the first plus the rest times that of the second. Whitening divides
each principal component by its standard deviation, so that frequent differences (brightness, position) weigh no more
than rare ones.

The memory holds the vectors of the images and their refined labels (propagate.py). A new image x with probabilities
P(x) gets the votes of its ten nearest images j in the memory, by the formula of label propagation:

    p(x) ~ P(x) times the product over j of (1 - r + r Z_j / M) ^ (VOTES w_j f(x))

f(x) = s h. s, the image's *similarity* to the memory, is 1 for an image as near to its neighbours as the memory's own
images are, and falls to 0 for one unlike any of them, which so keeps the model's own answer. h is the share of P(x) in
classes that the pool holds: what the memory learned of other classes says nothing about an image of them. A class of
which the pool holds few images gets smaller votes: times n / (n + 5), n = the sum of its refined labels. An image never
votes for itself: a vector of almost the same direction is left out. Of Z_j the five largest probabilities are kept; a
constant factor of all classes cancels, so that the votes are sparse.

Where people answered "none of the classes" for some of the images, this is a class of its own, the last column of
everything here, and p has the columns of the K classes: what a row lacks of 1 is the probability of none of them. It
is divided by exp(`none_margin`), so that few images of the classes get none (`must refine`).

The idea of a memory of features beside CLIP is that of Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), whose images
have labels.

Shapes: B or N images, T tokens, L patches, W width, D embedding, G cells of the grid, P components, V numbers a vector;
in the memory N images, K classes, C columns (K, or one more for none of the classes), S labels kept of an image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.base.parameters import require
from must.model.description import MemoryFacts
from must.model.masked_vit import MaskedViT
from must.model.towers import Tower

TOKEN_GRID = 4  # cells per side, over which patches are averaged
TOKENS_SHARE = 0.7  # of a cosine, from the tokens
COMPONENTS = 128  # principal components of each of the two parts
SMALLEST_SPREAD = 3e-4  # of the largest: below it a component is mostly the rounding of float32, and is left out
FITTED = 2_000  # images that the components are computed from
ROWS, COSINES = 1_024, 1 << 27  # images that are compared with all others at a time, at most; and their cosines
NEIGHBOURS = 10
SAME_IMAGE = 0.9999  # a cosine above it: the same image
SAME_IMAGE_INT8 = 0.97  # the same for vectors of an int8 tower, which differ a little from those in the memory
# Near copies, which are no independent witnesses: a cosine above 0.5 + 2.2 / sqrt(V), as few numbers agree by chance;
# and by APART above the one with the sixth neighbour, as a burst has few pictures, and a dense class many.
NEAR, APART, SIXTH = (0.5, 2.2), 0.15, 5
# Of all images, so many are copies of others, or of their pairs so many have the same most probable class; else they
# are no copies, but alike.
MANY_COPIES, SAME_CLASS = 0.2, 0.8
SHARPNESS = 5.0  # a neighbour has weight exp(5 (cosine - 1))
SMALLEST_PROBABILITY = 1e-4  # smallest probability that is multiplied


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


def make_grid(patches: int) -> Tensor:
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
    cells = make_grid(patches.shape[1]).to(tokens.device)
    return torch.cat([prefix.float(), cells @ patches.float()], 1).flatten(1)


def join_vectors(tokens: Tensor, embedding: Tensor) -> Tensor:
    """Unit vectors [B, V] of the two parts' unit vectors."""
    return torch.cat([TOKENS_SHARE**0.5 * tokens, (1 - TOKENS_SHARE) ** 0.5 * embedding], 1)


def find_nearest(values: Tensor, count: int = NEIGHBOURS, start: int = 0) -> tuple[Tensor, Tensor]:
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


def find_groups(numbers: Tensor, cosines: Tensor, least: float, classes: Tensor) -> Tensor:
    """Int64 [N]: groups of near copies, each named by the row of its first image; each image alone where these are not
    one picture to the model. `numbers`, `cosines`: [N, C], of `find_nearest`; `classes`: int64 [N], the most probable.
    """
    groups = torch.arange(len(numbers), device=numbers.device)
    if cosines.shape[1] <= SIXTH:
        return groups
    near = (cosines > least) & (cosines > cosines[:, SIXTH, None] + APART)
    rows, places = near.nonzero(as_tuple=True)
    pairs = torch.stack([rows, numbers[rows, places]]).sort(0).values.unique(dim=1)
    first = groups.tolist()
    for row, other in pairs.T.tolist():
        if first[row] == row and first[other] == other:
            first[other] = row
    joined = groups.new_tensor(first)
    many = (joined != groups).float().mean() >= MANY_COPIES
    return joined if many or (classes[pairs[0]] == classes[pairs[1]]).float().mean() >= SAME_CLASS else groups


class Neighbours(NamedTuple):
    """The neighbours of N images in G groups of near copies. A group is represented by its first image."""

    first: Tensor  # int64 [G], the row of each group's first image
    groups: Tensor  # int64 [N], the group of each image, 0 to G - 1
    numbers: Tensor  # int64 [G, C], the most similar other groups, best first
    cosines: Tensor  # float32 [G, C], of their first images


def find_nearest_groups(values: Tensor, classes: Tensor) -> Neighbours:
    """As `find_nearest`, of groups of near copies. `values`: [N, V], unit vectors; `classes`: as of `find_groups`."""
    numbers, cosines = find_nearest(values)
    least = min(NEAR[0] + NEAR[1] / values.shape[1] ** 0.5, SAME_IMAGE)
    first, groups = find_groups(numbers, cosines, least, classes).unique(return_inverse=True)
    return Neighbours(first, groups, *(find_nearest(values[first]) if len(first) < len(values) else (numbers, cosines)))


def separate(near: Neighbours, values: Tensor, rows: Tensor) -> Neighbours:
    """Each of the images `rows` [R] becomes a group of its own, the last ones, unless it is the first of its group."""
    rows = rows[near.first[near.groups[rows]] != rows]
    count = len(near.first)
    first, groups = torch.cat([near.first, rows]), near.groups.clone()
    new = groups[rows] = torch.arange(count, len(first), device=rows.device)
    found = find_nearest(values[first], start=count)
    parts = list[tuple[Tensor, Tensor]]()
    for part in torch.arange(count, device=rows.device).split(ROWS):
        cosines = torch.cat([near.cosines[part], values[near.first[part]] @ values[rows].T], 1)
        cosines, places = cosines.topk(found[0].shape[1], dim=1)
        parts.append((torch.cat([near.numbers[part], new.expand(len(part), -1)], 1).gather(1, places), cosines))
    numbers, cosines = (torch.cat(columns) for columns in zip(*parts, found, strict=True))
    return Neighbours(first, groups, numbers, cosines)


def weigh_neighbours(cosines: Tensor) -> Tensor:
    """Weights [N, C], rows of sum 1, from the `cosines` [N, C] of `find_nearest`."""
    weights = torch.exp(SHARPNESS * (cosines - 1))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


class Memory(nn.Module):
    """Probabilities [B, K] of a model and vectors [B, V] -> probabilities with the neighbours' votes, whose rows have a
    sum of at most 1."""

    vectors: Tensor  # float16 [N, V], unit vectors
    classes: Tensor  # int32 [N, S], class numbers of the largest refined labels
    lifts: Tensor  # float16 [N, S], VOTES log((1 - r + r Z / M) / (1 - r)) times n / (n + 5), 0 or more
    fade: Tensor  # float32 [2], the cosines where votes begin to count, and count fully
    held: Tensor  # float32 [K], 0 to 1, how far the pool holds images of the class
    correction: Tensor  # float16 [K + V, C] of `fit_correction`; [0, C] without answers
    answered: Tensor  # int64 [A], the first 8 bytes of the sha256 of the answered images, which measure nothing

    def __init__(self, tokens: Whitening, embedding: Whitening, buffers: dict[str, Tensor], facts: MemoryFacts) -> None:
        super().__init__()
        self.tokens, self.embedding, self.facts = tokens, embedding, facts
        self.same_image = SAME_IMAGE
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def join(self, flat_tokens: Tensor, feature: Tensor) -> Tensor:
        """Vectors float32 [B, V] of flattened tokens (`flatten_tokens`) and unit features [B, D]."""
        return join_vectors(self.tokens(flat_tokens), self.embedding(feature))

    def forward(self, probability: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities float32 [B, K], similarity float32 [B] from 0 to 1)."""
        cosines = vectors @ F.normalize(self.vectors.float(), dim=1).T  # half precision changes their length
        cosines = torch.where(cosines > self.same_image, -1.0, cosines)
        cosines, rows = cosines.topk(min(NEIGHBOURS, self.vectors.shape[0]), dim=1)
        weights = weigh_neighbours(cosines)
        distance = (weights * cosines).sum(1)
        similarity = ((distance - self.fade[0]) / (self.fade[1] - self.fade[0])).clamp(0, 1)
        classes, share = probability.shape[1], similarity * (probability @ self.held)
        probability = apply_correction(probability, vectors, self.correction, self.facts.none, share)
        votes = (weights * share[:, None])[..., None] * self.lifts.float()[rows]
        total = torch.zeros_like(probability).scatter_add(1, self.classes.long()[rows].flatten(1), votes.flatten(1))
        # Not `total[:, classes:] -= ...`: torch 2.10 exports that with wrong shapes.
        margin = F.pad(self.held.new_zeros(classes), (0, total.shape[1] - classes), value=self.facts.none_margin)
        return (probability.log() + total - margin).softmax(-1)[:, :classes], similarity


def apply_correction(
    probabilities: Tensor, values: Tensor, correction: Tensor, none: float, share: Tensor | None = None
) -> Tensor:
    """Float32 [N, C]: the probabilities [N, K], and `none` in a last column unless it is 0, corrected; with `share`
    [N], by this share of the correction and of `none`. Rows have the sum 1."""
    corrected = probabilities
    if none:
        column = torch.full_like(probabilities[:, :1], none)
        corrected = torch.cat([probabilities, column if share is None else column * share[:, None]], 1)
    if correction.shape[0]:
        change = torch.cat([probabilities, values.float()], 1) @ correction.float()
        corrected = corrected + (change if share is None else share[:, None] * change)
    return normalize_probabilities(corrected)


def normalize_probabilities(values: Tensor) -> Tensor:
    """[N, K], at least SMALLEST_PROBABILITY each, rows of sum 1."""
    values = values.clamp(min=SMALLEST_PROBABILITY)
    return values / values.sum(-1, keepdim=True)


def parse_memory(tensors: dict[str, Tensor], facts: MemoryFacts, model: MaskedViT) -> Memory:
    """Raises ValueError or KeyError: the tensors do not belong together, or to the model."""
    values = dict(tensors)
    parts = [
        Whitening(values.pop(f"{part}.projection"), values.pop(f"{part}.offset")) for part in ("tokens", "embedding")
    ]
    memory = Memory(parts[0], parts[1], {name: values.pop(name) for name in Memory.__annotations__}, facts)
    require(not values, "other tensors")
    D, K = model.classifier.shape
    N, V = memory.vectors.shape
    require(memory.embedding.projection.shape[0] == D and memory.classes.shape == memory.lifts.shape, "shapes")
    require(len(memory.classes) == N > 0 and memory.fade.shape == (2,) and memory.held.shape == (K,), "shapes")
    require(memory.tokens.projection.shape[0] % model.tower.width == 0 and memory.facts.images == N, "shapes")
    require(all(part.projection.shape[1:] == part.offset.shape for part in parts), "shapes")
    require(sum(len(part.offset) for part in parts) == V, "shapes")
    C = K + (facts.none > 0)
    require(memory.correction.shape in ((0, C), (K + V, C)), "shapes")
    require(0 <= facts.none < 1 and 0 <= facts.none_margin < math.inf, "none")
    require(int(memory.classes.min()) >= 0 and int(memory.classes.max()) < C, "classes")
    finite = all(bool(value.isfinite().all()) for value in memory.state_dict().values())
    held = bool(((memory.held >= 0) & (memory.held <= 1)).all())
    require(finite and held and bool((memory.lifts >= 0).all()), "numbers")
    return memory.eval()
