"""The report's pictures: mistakes, changed predictions, changed confusions, and a map of images."""

import base64
import io
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from must.base.errors import MustError
from must.config import EvaluateConfig
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader
from must.evaluation.report.charts import percent
from must.evaluation.result import Metrics, RefinedLabels
from must.evaluation.scores import SampleFeatures, Samples, Scores

IMAGES_SHOWN, OF_KIND = 18, 3
RELABELLED_SHOWN = 24
CHANGES_SHOWN = 9
COLOURS, MAP_SIDE = 10, 96  # classes with a colour of their own; pixels of a picture on the map
PAIRS_SHOWN, OF_PAIR = 8, 4
ROWS_SHOWN = 40  # classes or findings with pictures of unlabeled images


SIDE, SMALL_SIDE = 192, 96  # pixels; shown a little smaller
QUALITY = 78


@dataclass(frozen=True)
class Pictures:
    """The images of a report, as dicts for its template."""

    reader: ShardReader
    metrics: Metrics
    samples: Samples
    after: Scores
    before: Scores | None
    unlabeled: ShardReader | None = None  # of the images that `must refine` labelled; None: not there any more

    @classmethod
    def open(
        cls, config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
        refined: RefinedLabels | None,
    ) -> Self:  # fmt: skip
        reader, unlabeled = ShardReader(config.shards, config.split, sha256=config.index_sha256), None
        if refined:
            with suppress(MustError, OSError):
                unlabeled = ShardReader(refined.shards, refined.split, sha256=refined.index_sha256)
        return cls(reader, metrics, samples, after, before, unlabeled)

    def thumbnail(self, sample: int, max_side: int = SIDE, reader: ShardReader | None = None) -> str:
        """The middle square, at most `max_side` pixels wide, as a data URI."""
        reader = reader or self.reader
        image = decode(reader.image(sample), reader.index.max_pixels, shorter_side=max_side)
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((x, y, x + side, y + side))
        if side > max_side:
            image = image.resize((max_side, max_side), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()

    def gallery(self) -> dict[str, Any]:
        """The most confident mistakes; without labels, the most confident changes from the baseline."""
        metrics, samples, after, before = self.metrics, self.samples, self.after, self.before
        if metrics.labelled:
            wrong = np.flatnonzero(samples.labelled & (after.prediction != samples.labels))
            title, empty = "Most confident mistakes", "No mistakes on this split."
        elif before is not None:
            wrong = np.flatnonzero(after.prediction != before.prediction)
            title, empty = "Most confident changes", "No prediction changed."
        else:
            wrong = np.arange(len(samples.numbers))
            title, empty = "Most confident predictions", ""
        order = wrong[np.argsort(-after.confidence[wrong], kind="stable")]
        kinds = samples.labels if metrics.labelled or before is None else before.prediction
        chosen = limit_per_kind(order, kinds, after.prediction)
        images = [self.picture(row) for row in chosen]
        return {"title": title, "empty": empty, "images": images}

    def map(self, features: SampleFeatures) -> dict[str, Any]:
        """`points`: at most MAP_IMAGES images, similar ones near each other; `classes`: the most frequent predictions
        with their colours. All other classes share the last colour."""
        shown = np.linspace(0, len(features.rows) - 1, min(MAP_IMAGES, len(features.rows))).astype(int)
        rows, positions = features.rows[shown].tolist(), layout(features.values[shown])
        frequent_classes = [k for k, _ in Counter(self.after.prediction[rows].tolist()).most_common(COLOURS)]
        points = []
        for row, (x, y) in zip(rows, positions.tolist(), strict=True):
            predicted, label = int(self.after.prediction[row]), int(self.samples.labels[row])
            colour = frequent_classes.index(predicted) if predicted in frequent_classes else COLOURS
            wrong = label >= 0 and label != predicted
            point = {"x": round(100 * x, 1), "y": round(100 * y, 1), "colour": colour, "wrong": wrong}
            points.append(point | {"image": self.picture(row, MAP_SIDE)})
        names = [(self.metrics.classes[k], colour) for colour, k in enumerate(frequent_classes)]
        return {"points": points, "classes": names, "others": any(p["colour"] == COLOURS for p in points)}

    def changes(self) -> list[tuple[str, str, list[dict[str, Any]]]]:
        """(title, tone, most confident images) of the images that only the model, and only the baseline, has right."""
        samples, after, before = self.samples, self.after, self.before
        if before is None or not self.metrics.labelled:
            return []
        right, was_right = (samples.labelled & (scores.prediction == samples.labels) for scores in (after, before))
        groups = []
        for title, tone, rows in (("Right now", "good", right & ~was_right), ("Wrong now", "bad", was_right & ~right)):
            order = np.flatnonzero(rows)
            order = order[np.argsort(-after.confidence[order], kind="stable")]
            chosen = limit_per_kind(order, before.prediction, after.prediction)[:CHANGES_SHOWN]
            groups.append((f"{title}: {len(order):,}", tone, [self.picture(row) for row in chosen]))
        return groups

    def changed_pairs(self) -> list[dict[str, Any]]:
        """Confusions (label, prediction) whose number changed most from the baseline, each with a few images."""
        metrics, samples, after, before = self.metrics, self.samples, self.after, self.before
        if before is None or not metrics.labelled:
            return []
        classes = len(metrics.classes)
        rows = np.flatnonzero(samples.labelled)
        labels = samples.labels[rows]
        old = labels * classes + before.prediction[rows]
        new = labels * classes + after.prediction[rows]
        keys = np.unique(np.concatenate([old, new]))
        keys = keys[keys // classes != keys % classes]
        was, now = (np.bincount(np.searchsorted(keys, x[np.isin(x, keys)]), minlength=len(keys)) for x in (old, new))
        pairs = []
        for i in np.argsort(-np.abs(now - was), kind="stable")[:PAIRS_SHOWN]:
            if was[i] == now[i]:
                continue
            examples = rows[(old == keys[i]) != (new == keys[i])][:OF_PAIR]
            pairs.append(
                {
                    "label": metrics.classes[keys[i] // classes],
                    "prediction": metrics.classes[keys[i] % classes],
                    "was": int(was[i]),
                    "now": int(now[i]),
                    "images": [self.picture(row) for row in examples],
                }
            )
        return pairs

    def relabelled(self, changed: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
        """Images whose refined label differs from the zero-shot model's. `changed`: image -> (zero-shot label, refined
        label). The most frequent changes first, at most OF_KIND of the same change."""
        rows = [row for row, source in enumerate(self.samples.sources) if source in changed]
        pairs = [changed[self.samples.sources[row]] for row in rows]
        frequency = Counter(pairs)
        order = sorted(range(len(rows)), key=lambda i: (-frequency[pairs[i]], pairs[i]))
        counts, images = Counter[tuple[str, str]](), list[dict[str, Any]]()
        for i in order:
            counts[pairs[i]] += 1
            if counts[pairs[i]] <= OF_KIND and len(images) < RELABELLED_SHOWN:
                old, new = pairs[i]
                source = self.samples.sources[rows[i]]
                data = self.thumbnail(int(self.samples.numbers[rows[i]]))
                images.append({"data": data, "zero_shot": old, "refined": new, "source": source})
        return images

    def with_samples(self, rows: list[dict[str, Any]], side: int = SIDE) -> list[dict[str, Any]]:
        """Rows about unlabeled images, the first ones with `pictures`: those of their `samples`."""
        shown = ROWS_SHOWN if self.unlabeled else 0
        return [
            row | {"pictures": [self.thumbnail(n, side, self.unlabeled) for n in row["samples"]] if i < shown else []}
            for i, row in enumerate(rows)
        ]

    def picture(self, row: int, side: int = SIDE) -> dict[str, Any]:
        classes, samples, after, before = self.metrics.classes, self.samples, self.after, self.before
        return {
            "data": self.thumbnail(int(samples.numbers[row]), side),
            "source": samples.sources[row],
            "label": classes[samples.labels[row]] if samples.labels[row] >= 0 else None,
            "adapted": classes[after.prediction[row]],
            "confidence": percent(float(after.confidence[row]), 0),
            "baseline": classes[before.prediction[row]] if before is not None else None,
        }


def limit_per_kind(rows: np.ndarray, kinds: np.ndarray, predictions: np.ndarray) -> list[int]:
    """The first rows, at most OF_KIND of each (kind, prediction), so that no frequent confusion fills the page."""
    counts: dict[tuple[int, int], int] = {}
    chosen: list[int] = []
    for row in rows.tolist():
        pair = (int(kinds[row]), int(predictions[row]))
        counts[pair] = counts.get(pair, 0) + 1
        if counts[pair] <= OF_KIND:
            chosen.append(row)
        if len(chosen) == IMAGES_SHOWN:
            break
    return chosen


MAP_IMAGES = 240  # images at most
PERPLEXITY = 15.0  # about how many neighbours an image has
MAP_ROUNDS, EARLY = 400, 100


def layout(values: np.ndarray) -> np.ndarray:
    """t-SNE: positions, float [N, 2] from 0 to 1, of images with features `values` [N, D]. Deterministic."""
    images = len(values)
    if images < 3:
        return np.full((images, 2), 0.5)
    P = affinities(values.astype(np.float64), min(PERPLEXITY, (images - 1) / 3))
    centred = values - values.mean(0)
    Y = np.linalg.svd(centred, full_matrices=False)[0][:, :2].astype(np.float64)
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
    precision, low, high = np.ones(images), np.zeros(images), np.full(images, np.inf)
    for _ in range(50):
        P = np.exp(-precision[:, None] * (distances - np.partition(distances, 1, axis=1)[:, 1:2]))
        np.fill_diagonal(P, 0)
        P /= P.sum(1, keepdims=True)
        entropy = -(P * np.log(np.maximum(P, 1e-300))).sum(1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, precision, low), np.where(wide, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + np.where(np.isinf(high), 0, high)) / 2)
    return (P + P.T) / (2 * images)


def squared_distances(values: np.ndarray) -> np.ndarray:
    """Float [N, N]."""
    norms = (values**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * values @ values.T, 0)
