"""The report's map of images: similar ones near each other, by t-SNE (van der Maaten and Hinton 2008).

N images, V numbers a vector.
"""

from collections import Counter
from typing import Any

import numpy as np

from must.evaluation.report.gallery import Pictures

COLOURS, MAP_SIDE = 10, 96  # classes with a colour of their own; pixels of a picture on the map
MAP_IMAGES = 240  # at most
PERPLEXITY = 15.0  # about how many neighbours an image has
MAP_ROUNDS, EARLY = 400, 100

Vectors = tuple[np.ndarray, np.ndarray]  # int64 [N], rows of `Samples`, MAP_IMAGES at most; float32 [N, V]


def draw_map(pictures: Pictures, vectors: Vectors) -> dict[str, Any]:
    """`points`: an image each; `classes`: the most frequent predictions with their colours. All other classes share the
    last colour."""
    rows, positions = vectors[0].tolist(), lay_out(vectors[1]).tolist()
    predictions, labels = pictures.after.prediction, pictures.samples.labels
    frequent = Counter(predictions[rows].tolist()).most_common(COLOURS)
    colours = {number: colour for colour, (number, _) in enumerate(frequent)}
    points = []
    for row, (x, y) in zip(rows, positions, strict=True):
        wrong = labels[row] >= 0 and labels[row] != predictions[row]
        point = {"x": round(100 * x, 1), "y": round(100 * y, 1), "colour": colours.get(predictions[row], COLOURS)}
        points.append(point | {"wrong": wrong, "image": pictures.picture(row, MAP_SIDE)})
    names = [(pictures.metrics.classes[number], colour) for number, colour in colours.items()]
    return {"points": points, "classes": names, "others": any(point["colour"] == COLOURS for point in points)}


def lay_out(values: np.ndarray) -> np.ndarray:
    """Float [N, 2] from 0 to 1: the images' positions, by t-SNE of the vectors [N, V]. Deterministic."""
    images = len(values)
    if images < 3:
        return np.full((images, 2), 0.5)
    P = affinities(values.astype(np.float64), min(PERPLEXITY, (images - 1) / 3))
    Y = np.linalg.svd(values - values.mean(0), full_matrices=False)[0][:, :2].astype(np.float64)
    Y = 1e-2 * np.pad(Y, ((0, 0), (0, 2 - Y.shape[1])))
    step, gains = np.zeros_like(Y), np.ones_like(Y)
    for iteration in range(MAP_ROUNDS):
        similarity = 1 / (1 + squared_distances(Y))
        np.fill_diagonal(similarity, 0)
        attraction = (P * (12 if iteration < EARLY else 1) - similarity / similarity.sum()) * similarity
        gradient = 4 * (attraction.sum(1)[:, None] * Y - attraction @ Y)
        gains = np.where(np.sign(gradient) != np.sign(step), gains + 0.2, gains * 0.8).clip(0.01)
        step = (0.5 if iteration < EARLY else 0.8) * step - max(images / 12, 50) * gains * gradient
        Y = Y + step
    low, high = Y.min(0), Y.max(0)
    return (Y - low) / np.maximum(high - low, 1e-12)


def affinities(values: np.ndarray, perplexity: float) -> np.ndarray:
    """Float [N, N] with sum 1: similarity of images, each with about `perplexity` neighbours."""
    distances, images = squared_distances(values), len(values)
    np.fill_diagonal(distances, np.inf)
    precision, low, high = np.ones(images), np.zeros(images), np.full(images, np.inf)
    for _ in range(50):
        P = np.exp(-precision[:, None] * (distances - distances.min(1, keepdims=True)))
        P /= P.sum(1, keepdims=True)
        wide = -(P * np.log(np.maximum(P, 1e-300))).sum(1) > np.log(perplexity)
        low, high = np.where(wide, precision, low), np.where(wide, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + np.where(np.isinf(high), 0, high)) / 2)
    return (P + P.T) / (2 * images)


def squared_distances(values: np.ndarray) -> np.ndarray:
    """Float [N, N]."""
    norms = (values**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * values @ values.T, 0)
