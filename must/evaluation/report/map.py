"""The report's map of images, by the first two principal components of their features.

N images, D numbers a feature.
"""

from collections import Counter
from typing import Any

import numpy as np

from must.evaluation.report.gallery import Pictures

COLOURS, MAP_SIDE = 10, 96  # classes with a colour of their own; pixels of a picture on the map
MAP_IMAGES = 240  # at most


Features = tuple[np.ndarray, np.ndarray]  # int64 [N], rows of `Samples`, MAP_IMAGES at most; float32 [N, D]


def draw_map(pictures: Pictures, features: Features) -> dict[str, Any]:
    """`points`: an image each; `classes`: the most frequent predictions with their colours. All other classes share the
    last colour."""
    rows, positions = features[0].tolist(), lay_out(features[1]).tolist()
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
    """Float [N, 2] from 0 to 1: the first two principal components of the features [N, D], N > 0."""
    U, S, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    Y = np.pad((U * S)[:, :2], ((0, 0), (0, max(0, 2 - len(S)))))  # of one image: zeros
    return (Y - Y.min(0)) / np.maximum(np.ptp(Y, axis=0), 1e-6)
