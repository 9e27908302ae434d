"""Similar images, and labels from them. N images, K classes, C neighbours per image, A images with a person's answer.

Neighbours are found by the cosine of whitened features [N, D].

Without answers, from the models' probabilities P [N, K] and an image's nearest neighbours j with weights w_j of sum 1,
ten times:

    Z_i <- P_i times the product over j of (1 - r + r Z_j / M) ^ (VOTES w_j), scaled to sum 1;    M = mean of all Z

This is naive Bayes, where a neighbour has the image's class with probability r and else is any image; VOTES of them
count as independent. r is how often neighbours have the same most probable class in P, beyond chance, so that
neighbours unrelated to the classes change nothing.

Answers are used first: the errors of P on the answered images predict its errors on similar images, by kernel ridge
regression of (answer - P) on the features and on P. Correcting and then smoothing is Huang et al. 2021
(arXiv 2010.13993).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10
SHARPNESS = 5.0  # a neighbour has weight exp(5 (cosine - 1))
VOTES = 2.0  # number of an image's neighbours that count as independent
RARE = 1e-3  # added to a class's mean, so that the lift of an absent class is finite; and the smallest lift
SMALLEST_PROBABILITY = 1e-4  # smallest probability that is multiplied
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)
BLOCK_NUMBERS = 1 << 25  # numbers of a block of images
NEIGHBOURS = 10
COMPONENTS = 128  # principal components that are compared
FITTED = 2_000  # images that the components are computed from
ROWS = 1_024  # images that are compared with all others at a time: ROWS x N numbers


def whitened(features: Tensor) -> Tensor:
    """Unit vectors float32 [N, P]: coordinates on the first principal components, each divided by its standard
    deviation, so that frequent differences (brightness, position) weigh no more than rare ones.

    P is COMPONENTS, or a quarter of the number of images if that is less.
    `features`: [N, D], any floating type."""
    images = len(features)
    sample = features[torch.linspace(0, images - 1, min(images, FITTED), device=features.device).long()].double()
    mean = sample.mean(0)
    _, spread, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    count = max(1, min(COMPONENTS, len(sample) // 4))
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


def refined_probabilities(neighbours: Tensor, cosines: Tensor, values: Tensor, mean: Tensor, answers: Tensor) -> Tensor:
    """Float32 [N, K]: the mean of the models' probabilities, corrected by answers, then propagated.

    Args:
        neighbours, cosines: as of `nearest(values)`.
        answers: int64 [2, A], as of `answer_rows`.
    """
    answered, labels = answers.to(mean.device)
    if len(answered):
        mean = corrected(mean, values, answered, labels)
    return propagate(neighbours, cosines, mean, answered, labels)


def answer_rows(answers: dict[int, int], numbers: Tensor) -> Tensor:
    """Int64 [2, A]: the indices in `numbers` [N] of answered images, and their classes, of {number: class number}."""
    pairs = [(index, answers[number]) for index, number in enumerate(numbers.tolist()) if number in answers]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def propagate(
    neighbours: Tensor,
    cosines: Tensor,
    probabilities: Tensor,
    answered: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Float32 [N, K], rows of sum 1. Answered images keep their class.

    Args:
        neighbours: int64 [N, C], and their `cosines` [N, C], as of `nearest`.
        probabilities: [N, K]; where there are two models, their mean; where there are answers, as of `corrected`.
        answered: int64 [A], and `labels`, int64 [A], the class numbers; -1 where an image shows none of the classes.
    """
    P = probabilities.float().clamp(min=SMALLEST_PROBABILITY)
    P = P / P.sum(1, keepdim=True)
    if answered is not None and labels is not None:
        P[answered] = one_hot(labels, P.shape[1])
    weights = neighbour_weights(cosines)
    rows = max(1, BLOCK_NUMBERS // max(1, neighbours.shape[1] * P.shape[1]))
    shared, Z = shared_share(neighbours, weights, P.argmax(1)), P
    for _ in range(ROUNDS if neighbours.shape[1] else 0):
        mean, updated = Z.mean(0) + RARE, torch.empty_like(Z)
        for start in range(0, len(Z), rows):
            block = slice(start, start + rows)
            votes = (1 - shared + shared * Z[neighbours[block]] / mean).clamp(min=RARE).log()
            updated[block] = P[block] * torch.einsum("nc,nck->nk", VOTES * weights[block], votes).exp()
        Z = updated.div_(updated.sum(1, keepdim=True).clamp(min=1e-12))
        if answered is not None:
            Z[answered] = P[answered]
    return Z


def shared_share(neighbours: Tensor, weights: Tensor, labels: Tensor) -> float:
    """How often an image and its neighbours [N, C], with `weights` [N, C], have the same of the `labels` [N], beyond
    chance: 0 for as often as two random images, 1 for always."""
    same = float((weights * (labels[neighbours] == labels[:, None])).sum(1).mean())
    chance = float((labels.bincount() / len(labels)).square().sum())
    return max(0.0, same - chance) / max(1 - chance, RARE)


def neighbour_weights(cosines: Tensor) -> Tensor:
    """Weights [N, C], rows of sum 1, from the `cosines` [N, C] of `nearest`."""
    weights = torch.exp(SHARPNESS * (cosines - 1))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


def corrected(probabilities: Tensor, values: Tensor, answered: Tensor, labels: Tensor) -> Tensor:
    """Float32 [N, K]: the probabilities, corrected by the errors on similar answered images.

    The ridge is the one of RIDGES with the smallest leave-one-out error on the answers; if no correction has a smaller
    error, as with few answers and many classes, the probabilities do not change.

    Args:
        probabilities: [N, K].
        values: float32 [N, D], unit vectors, as of `whitened`.
        answered: int64 [A], and `labels`, int64 [A]; -1 where an image shows none of the classes.
    """
    P = probabilities.float()
    inputs = torch.cat([P, values], 1)
    known, errors = inputs[answered], one_hot(labels, P.shape[1]) - P[answered]
    smallest, change = float(errors.square().sum()), None
    for ridge in RIDGES:
        inverse = torch.linalg.inv(known @ known.T + ridge * torch.eye(len(known), device=known.device))
        weights = inverse @ errors
        left_out = float((weights / inverse.diagonal()[:, None]).square().sum())
        if left_out < smallest:
            smallest, change = left_out, known.T @ weights
    if change is None:
        return P
    P = (P + inputs @ change).clamp(min=SMALLEST_PROBABILITY)
    return P / P.sum(1, keepdim=True)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Float32 [A, K]; a row of zeros for -1."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()
