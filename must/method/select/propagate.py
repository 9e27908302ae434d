"""Label propagation among similar images (Zhou et al. 2003). N images, K classes, C neighbours an image.

    Z_i <- 0.8 sum_j w_ij Z_j + 0.2 Y_i, 20 times

over an image's nearest neighbours j; w_ij is exp(5 (cosine - 1)), scaled to sum 1. Y are the models' probabilities. An
image that a person has answered is held at its class, with three times the weight.
"""

import torch
from torch import Tensor

DAMPING, ROUNDS = 0.8, 20
SHARPNESS = 5.0
ANSWERED = 3.0  # weight of a person's answer, where a model's prediction has 1
NUMBERS = 1 << 25  # that a block of images and classes holds at a time


def propagate(
    neighbours: Tensor,
    cosines: Tensor,
    probabilities: Tensor,
    answered: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Float32 [N, K] of rows that sum to 1: the images' classes as their neighbours and the models see them.

    Memory: three times that of the result, and a block.

    Args:
        neighbours: int64 [N, C], and their `cosines` [N, C], as of `nearest`.
        probabilities: [N, K]; where there are two models, their mean.
        answered: int64 [A], images whose class a person gave, and `labels`, int64 [A], the class numbers; -1 where the
            image shows none of the classes.
    """
    Y = probabilities.float().clone()
    if answered is not None and labels is not None:
        Y[answered] = ANSWERED * (labels[:, None] == torch.arange(Y.shape[1], device=Y.device)).float()
    weights = torch.exp(SHARPNESS * (cosines - 1))
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    rows = max(1, NUMBERS // max(1, neighbours.shape[1] * Y.shape[1]))
    Z = Y
    for _ in range(ROUNDS if neighbours.shape[1] else 0):
        mixed = torch.empty_like(Z)
        for start in range(0, len(Z), rows):
            of = slice(start, start + rows)
            mixed[of] = torch.einsum("nc,nck->nk", weights[of], Z[neighbours[of]])
        Z = mixed.mul_(DAMPING).add_(Y, alpha=1 - DAMPING)
        if answered is not None:
            Z[answered] = Y[answered]
    return Z / Z.sum(1, keepdim=True).clamp(min=1e-12)


def class_shares(probabilities: Tensor, rounds: int = 100) -> Tensor:
    """[K], sum 1: the classes' shares among the images, by expectation maximisation (Saerens et al. 2002)."""
    P = probabilities.double()
    usual = P.mean(0).clamp(min=1e-12)
    shares = usual
    for _ in range(rounds):
        posterior = P * (shares / usual)
        shares = (posterior / posterior.sum(1, keepdim=True)).mean(0).clamp(min=1e-12)
    return shares.float()
