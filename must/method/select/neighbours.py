"""Which images look alike, to a judge that training cannot influence. N images, D numbers each.

`look_alikes` compares what the frozen tower sees as it is. `judges` compares its principal components, each divided by
its standard deviation: what most images differ in (brightness, stroke width, where the object lies) weighs no more than
what few do.
"""

import numpy as np

NEIGHBOURS = 20  # fewer among few images, where a class may have no more members
SAME = 0.999
"""Cosine from which two images count as one picture: byte-identical ones, or frames of a still video."""
FAINT = 0.01
"""Difference from the mean image, as a share of that one's length, below which an image is the mean: noise is left."""
ROWS = 1024  # images whose similarities to all others are held at a time


COMPONENTS, A_COMPONENT = 64, 8
"""Principal components that are compared, and images that there must be for each of them."""


def centred(tokens: np.ndarray) -> np.ndarray:
    """Float32 [N, D], the mean taken away and of unit length; an image that is the mean itself becomes zero."""
    mean = tokens.mean(axis=0, dtype=np.float64).astype(np.float32)
    values = tokens.astype(np.float32) - mean
    length = np.linalg.norm(values, axis=1, keepdims=True)
    faint = length < FAINT * np.linalg.norm(mean)
    return np.where(faint, np.float32(0), values / np.maximum(length, 1e-12))


def look_alikes(tokens: np.ndarray, count: int = 0, same: float = SAME) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, originals): int32 [M, count] most similar other images by cosine, best first, for int64 [M] images.

    `count` is 20 from 300 images on, else a fifteenth of the images and at least 5, unless it is given.

    Copies would vouch for each other and be counted as so many witnesses. So of images whose cosine is `same` or more
    the first one stays and the others are left out, as images and as neighbours; `originals` are the numbers of those
    that stayed, and neighbours are places in it. Memory: ROWS x N at a time.
    """
    values = centred(tokens)
    originals = first_of_copies(values, same)
    return nearest(values[originals], count), originals


def judges(tokens: np.ndarray, components: int = COMPONENTS) -> np.ndarray:
    """int32 [N, C]: like `look_alikes`, of images that are no copies (`tokens[originals]`), in whitened components."""
    return nearest(centred(whitened(tokens, components)))


def whitened(tokens: np.ndarray, components: int = COMPONENTS) -> np.ndarray:
    """Float32 [N, P], the coordinates of the images on their first principal components, each of variance 1. P is
    `components`, less among few images, of which the later components are noise."""
    values = tokens.astype(np.float64) - tokens.mean(axis=0, dtype=np.float64)
    images, numbers = values.shape
    if not images:
        return np.zeros((0, 0), np.float32)
    few = images < numbers
    variances, vectors = np.linalg.eigh((values @ values.T if few else values.T @ values) / images)
    first = np.argsort(-variances, kind="stable")[: max(1, min(components, images // A_COMPONENT, numbers))]
    first = first[variances[first] > 1e-9 * max(variances.max(), 1e-30)]
    if few:
        return (vectors[:, first] * images**0.5).astype(np.float32)
    return (values @ (vectors[:, first] / np.sqrt(variances[first]))).astype(np.float32)


def nearest(values: np.ndarray, count: int = 0) -> np.ndarray:
    """int32 [N, count], the most similar other images, best first, of unit vectors (or zeros) [N, D]."""
    count = count or min(NEIGHBOURS, max(5, len(values) // 15))
    count = min(count, len(values) - 1)
    found = np.zeros((len(values), max(count, 0)), np.int32)
    for start in range(0, len(values) if count > 0 else 0, ROWS):
        rows = slice(start, start + ROWS)
        similar = values[rows] @ values.T
        at = np.arange(len(similar))
        similar[at, at + start] = -np.inf
        best = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        found[rows] = np.take_along_axis(best, order, axis=1)
    return found


def first_of_copies(values: np.ndarray, same: float) -> np.ndarray:
    """Numbers of the images that are no copy of an earlier original: int64 [M]. `values` are unit vectors, or zero for
    the mean image, which all of those are."""
    copy = np.zeros(len(values), bool)
    copy[np.flatnonzero(~values.any(axis=1))[1:]] = True
    for start in range(0, len(values), ROWS):
        similar = values[start : start + ROWS] @ values.T >= same
        for row in np.flatnonzero(similar.sum(axis=1) > 1):
            number = start + row
            if not copy[number]:
                later = np.flatnonzero(similar[row])
                copy[later[later > number]] = True
    return np.flatnonzero(~copy)
