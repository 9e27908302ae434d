"""The pictures that teach most: those that are least similar to what has an answer, and to each other.

How well an image is covered is the largest cosine, cubed and at least 0, to an image with an answer. The next image is
always the one that adds most to the sum over all images: greedy facility location, at least 63% as good as the best.
"""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
COVERAGE_CANDIDATES = 20_000  # images to choose from; of more, so many evenly spread ones
COVERED = 4_000  # images whose coverage is summed; of more, so many evenly spread ones
BLOCK = 4_096  # images that are compared at a time
COVERAGE_BATCH = 64  # candidates whose gain is computed again at a time


def order_by_coverage(
    vectors: Vectors, weight: NDArray[np.floating] | None, already: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Int64 [count] or fewer: the images to ask about, the one that adds most coverage first.

    Args:
        vectors: float32 [N, D], of length 1.
        weight: [N], what covering each image is worth; None: all the same.
        already: int64 [A], the images that have an answer.
        count: number of images at most.
    """
    images = len(vectors)
    candidates = np.setdiff1d(evenly(images, COVERAGE_CANDIDATES), already)
    targets = evenly(images, COVERED)
    values, worth = vectors[targets], np.ones(len(targets), np.float32)
    if weight is not None:
        worth = weight[targets].astype(np.float32)
    covered = np.zeros(len(targets), np.float32)
    for start in range(0, len(already), BLOCK):
        covered = np.maximum(covered, similarity(vectors[already[start : start + BLOCK]], values).max(0))
    blocks = (candidates[start : start + BLOCK] for start in range(0, len(candidates), BLOCK))
    gains = [gain(similarity(vectors[block], values), covered, worth) for block in blocks]
    bounds = np.concatenate([*gains, np.zeros(0, np.float32)])  # a gain never grows: an earlier one is an upper bound
    order: list[int] = []
    while len(order) < min(count, len(candidates)):
        first = np.argpartition(-bounds, min(COVERAGE_BATCH, len(bounds) - 1))[:COVERAGE_BATCH]
        similar = similarity(vectors[candidates[first]], values)
        while True:
            bounds[first] = np.where(bounds[first] < 0, -1, gain(similar, covered, worth))
            best = int(bounds[first].argmax())
            if len(order) == min(count, len(candidates)) or bounds[first[best]] < bounds.max():
                break
            order.append(int(candidates[first[best]]))
            covered = np.maximum(covered, similar[best])
            bounds[first[best]] = -1
    return np.array(order, np.int64)


def evenly(images: int, most: int) -> NDArray[np.int64]:
    """Int64: the numbers of `most` evenly spread images, or of all."""
    return np.linspace(0, images - 1, min(images, most)).astype(np.int64)


def similarity(subset: Vectors, vectors: Vectors) -> Vectors:
    """Float32 [S, N]: cosines, cubed and at least 0."""
    cosines = np.maximum(subset @ vectors.T, 0)
    return cosines * cosines * cosines


def gain(similar: Vectors, covered: Vectors, worth: Vectors) -> Vectors:
    """Float32 [S]: what each of S images adds. `similar`: [S, N], of `similarity`."""
    return np.maximum(similar - covered, 0) @ worth
