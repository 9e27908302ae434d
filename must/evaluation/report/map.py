"""A map of images, similar ones near each other: t-SNE (van der Maaten and Hinton 2008), exact, for few images."""

import numpy as np

SHOWN = 240  # images at most
PERPLEXITY = 15.0  # neighbours that an image is near to, about
ROUNDS, EARLY = 400, 100


def layout(values: np.ndarray) -> np.ndarray:
    """Float [N, 2] from 0 to 1: places of N images with features `values` [N, D]. The same for the same input."""
    images = len(values)
    if images < 3:
        return np.full((images, 2), 0.5)
    P = affinities(values.astype(np.float64), min(PERPLEXITY, (images - 1) / 3))
    start = values - values.mean(0)
    Y = np.linalg.svd(start, full_matrices=False)[0][:, :2].astype(np.float64)
    Y = 1e-2 * np.pad(Y, ((0, 0), (0, 2 - Y.shape[1])))
    step, gains = np.zeros_like(Y), np.ones_like(Y)
    for turn in range(ROUNDS):
        near = 1 / (1 + squares(Y))
        np.fill_diagonal(near, 0)
        pull = (P * (12 if turn < EARLY else 1) - near / near.sum()) * near
        slope = 4 * (pull.sum(1)[:, None] * Y - pull @ Y)
        gains = np.where(np.sign(slope) != np.sign(step), gains + 0.2, gains * 0.8).clip(0.01)
        step = (0.5 if turn < EARLY else 0.8) * step - max(images / 12, 50) * gains * slope
        Y = Y + step
    low, high = Y.min(0), Y.max(0)
    return (Y - low) / np.maximum(high - low, 1e-12)


def affinities(values: np.ndarray, perplexity: float) -> np.ndarray:
    """Float [N, N] of sum 1: how near images are to each other, each with about `perplexity` neighbours."""
    distances, images = squares(values), len(values)
    sharp, low, high = np.ones(images), np.zeros(images), np.full(images, np.inf)
    for _ in range(50):
        P = np.exp(-sharp[:, None] * (distances - np.partition(distances, 1, axis=1)[:, 1:2]))
        np.fill_diagonal(P, 0)
        P /= P.sum(1, keepdims=True)
        entropy = -(P * np.log(np.maximum(P, 1e-300))).sum(1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, sharp, low), np.where(wide, high, sharp)
        sharp = np.where(np.isinf(high), 2 * sharp, (low + np.where(np.isinf(high), 0, high)) / 2)
    return (P + P.T) / (2 * images)


def squares(values: np.ndarray) -> np.ndarray:
    """Float [N, N]: squared distances."""
    norms = (values**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * values @ values.T, 0)
