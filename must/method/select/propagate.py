"""Labels from similar images. N images, K classes, C neighbours an image, A images that a person has answered.

Without answers, from the models' probabilities P [N, K] and an image's nearest neighbours j, ten times:

    Z_i <- P_i L_i^0.5, scaled to sum 1;    L_i = (mean of Z_j over the neighbours) / (mean of Z over all images)

L_i is the lift: how much more than usual the neighbours have a class. Where neighbours know nothing of the classes it
is near 1 and nothing changes; adding the neighbours' mean instead harms there.

Answers come first: what P gets wrong on the answered images is taken for what it gets wrong on images like them, by
kernel ridge regression of (answer - P) on the features and on P. Correcting and then smoothing is Huang et al. 2021
(arXiv 2010.13993).
"""

import torch
from torch import Tensor

WEIGHT, ROUNDS = 0.5, 10
SHARPNESS = 5.0  # a neighbour weighs exp(5 (cosine - 1))
RARE = 1e-3  # added to a class's mean, so that a class that is nowhere has no infinite lift
LEAST = 1e-4  # smallest probability that is multiplied
RIDGE = 1.0
ABSENT = 0.2  # share of the classes that no label has, above which some are taken for absent
NUMBERS = 1 << 25  # that a block of images holds at a time


def places_of(answers: dict[int, int], numbers: Tensor) -> Tensor:
    """Int64 [2, A]: the places in `numbers` [N] of the answered images, and their class numbers."""
    known = [(place, answers[number]) for place, number in enumerate(numbers.tolist()) if number in answers]
    return torch.tensor(known, dtype=torch.int64).reshape(-1, 2).T


def refined_probabilities(
    neighbours: Tensor, cosines: Tensor, values: Tensor, mean: Tensor, answered: Tensor
) -> tuple[Tensor, bool]:
    """(float32 [N, K], whether the classes' shares were estimated): the mean of the models' probabilities, corrected by
    answers, then propagated.

    Where at least a fifth of the classes has no refined label, classes are probably absent: the probabilities are
    then weighted by the square root of the classes' estimated shares, and propagated again.

    Args:
        neighbours, cosines: as of `nearest(values)`.
        answered: int64 [2, A], as of `places_of`.
    """
    places, labels = answered.to(mean.device)
    if len(places):
        mean = corrected(mean, values, places, labels)
    refined = propagate(neighbours, cosines, mean, places, labels)
    absent = torch.bincount(refined.argmax(1), minlength=mean.shape[1]) == 0
    estimated = bool(absent.float().mean() >= ABSENT)
    if estimated:
        weighted = mean * class_shares(mean).sqrt()
        weighted /= weighted.sum(1, keepdim=True)
        refined = propagate(neighbours, cosines, weighted, places, labels)
    return refined, estimated


def propagate(
    neighbours: Tensor,
    cosines: Tensor,
    probabilities: Tensor,
    answered: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Float32 [N, K] of rows that sum to 1. Answered images stay at their class.

    Args:
        neighbours: int64 [N, C], and their `cosines` [N, C], as of `nearest`.
        probabilities: [N, K]; where there are two models, their mean; where there are answers, as of `corrected`.
        answered: int64 [A], and `labels`, int64 [A], the class numbers; -1 where an image shows none of the classes.
    """
    P = probabilities.float().clamp(min=LEAST)
    P = P / P.sum(1, keepdim=True)
    if answered is not None and labels is not None:
        P[answered] = one_hot(labels, P.shape[1])
    weights = torch.exp(SHARPNESS * (cosines - 1))
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    rows = max(1, NUMBERS // max(1, neighbours.shape[1] * P.shape[1]))
    Z = P
    for _ in range(ROUNDS if neighbours.shape[1] else 0):
        usual, mixed = Z.mean(0) + RARE, torch.empty_like(Z)
        for start in range(0, len(Z), rows):
            of = slice(start, start + rows)
            lift = torch.einsum("nc,nck->nk", weights[of], Z[neighbours[of]]) / usual
            mixed[of] = P[of] * lift.clamp(min=RARE) ** WEIGHT
        Z = mixed.div_(mixed.sum(1, keepdim=True).clamp(min=1e-12))
        if answered is not None:
            Z[answered] = P[answered]
    return Z


def corrected(probabilities: Tensor, values: Tensor, answered: Tensor, labels: Tensor) -> Tensor:
    """Float32 [N, K]: the probabilities with what the answers say of the errors on similar images.

    Args:
        probabilities: [N, K].
        values: float32 [N, D], unit vectors, as of `whitened`.
        answered: int64 [A], and `labels`, int64 [A]; -1 where an image shows none of the classes.
    """
    P = probabilities.float()
    both = torch.cat([P, values], 1)
    own = both[answered]
    kernel = own @ own.T + RIDGE * torch.eye(len(own), device=own.device)
    change = both @ (own.T @ torch.linalg.solve(kernel, one_hot(labels, P.shape[1]) - P[answered]))
    P = (P + change).clamp(min=LEAST)
    return P / P.sum(1, keepdim=True)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Float32 [A, K]; a row of zeros for -1."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def class_shares(probabilities: Tensor, rounds: int = 100) -> Tensor:
    """[K], sum 1: the classes' shares among the images, by expectation maximisation (Saerens et al. 2002)."""
    P = probabilities.double()
    usual = P.mean(0).clamp(min=1e-12)
    shares = usual
    for _ in range(rounds):
        posterior = P * (shares / usual)
        shares = (posterior / posterior.sum(1, keepdim=True)).mean(0).clamp(min=1e-12)
    return shares.float()
