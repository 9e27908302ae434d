"""The report's pictures: mistakes, changed predictions and changed confusions; and the map of images, by the first two
principal components of their features. N images, D numbers a feature."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from must.base.errors import MustError
from must.config import EvaluateConfig
from must.data.image.decode import decode
from must.data.loading.reader import ShardReader
from must.evaluation.result import Metrics, RefinedLabels
from must.evaluation.scores import Samples, Scores
from must.evaluation.table import percent

OF_KIND = 3  # pictures at most of one change or mistake, so that no frequent one fills the page
IMAGES_SHOWN, CHANGES_SHOWN, RELABELLED_SHOWN = 18, 9, 24
PAIRS_SHOWN, OF_PAIR = 8, 4
ROWS_SHOWN = 40  # classes or findings with pictures of unlabeled images
SIDE, SMALL_SIDE = 192, 96  # pixels; shown a little smaller
QUALITY = 78


class Pictures:
    """The images of a report, as dicts for its template."""

    def __init__(
        self, config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
        refined: RefinedLabels | None,
    ) -> None:  # fmt: skip
        self.metrics, self.samples, self.after, self.before = metrics, samples, after, before
        self.reader = ShardReader(config.shards, config.split, sha256=config.index_sha256)
        self.unlabeled: ShardReader | None = None  # of the images that `must refine` labelled
        if refined:
            with suppress(MustError, OSError):  # they may not be there any more
                self.unlabeled = ShardReader(refined.shards, refined.split, sha256=refined.index_sha256)

    def thumbnail(self, sample: int, max_side: int = SIDE, reader: ShardReader | None = None) -> str:
        """The middle square, at most `max_side` pixels wide, as a data URI."""
        reader = reader or self.reader
        image = decode(reader.image(sample), reader.index.max_pixels, shorter_side=max_side)
        side = min(max_side, *image.size)
        data = io.BytesIO()
        ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS).save(data, "JPEG", quality=QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()

    def gallery(self) -> dict[str, Any]:
        """The most confident mistakes; without labels, the most confident changes from the baseline."""
        metrics, samples, after, before = self.metrics, self.samples, self.after, self.before
        title, empty, kinds = "Most confident predictions", "", samples.labels
        chosen = np.ones(len(samples.numbers), bool)
        if metrics.labelled:
            title, empty = "Most confident mistakes", "No mistakes on this split."
            chosen = samples.labelled & (after.prediction != samples.labels)
        elif before is not None:
            title, empty, kinds = "Most confident changes", "No prediction changed.", before.prediction
            chosen = after.prediction != before.prediction
        return {"title": title, "empty": empty, "images": self.surest(chosen, kinds, IMAGES_SHOWN)}

    def changes(self) -> list[tuple[str, str, list[dict[str, Any]]]]:
        """(title, tone, most confident images) of the images that only the model, and only the baseline, has right."""
        samples, after, before = self.samples, self.after, self.before
        if before is None or not self.metrics.labelled:
            return []
        right, was_right = (samples.labelled & (scores.prediction == samples.labels) for scores in (after, before))
        return [
            (f"{title}: {rows.sum():,}", tone, self.surest(rows, before.prediction, CHANGES_SHOWN))
            for title, tone, rows in (
                ("Right now", "good", right & ~was_right),
                ("Wrong now", "bad", was_right & ~right),
            )
        ]

    def surest(self, chosen: np.ndarray, kinds: np.ndarray, limit: int) -> list[dict[str, Any]]:
        """Pictures of `chosen` images, bool [N], the most confident first; `kinds` [N]: their former classes."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(-self.after.confidence[rows], kind="stable")]
        prediction = self.after.prediction
        return [self.picture(row) for row in limit_kinds(rows, lambda row: (kinds[row], prediction[row]), limit)]

    def changed_pairs(self) -> list[dict[str, Any]]:
        """Confusions (label, prediction) whose number changed most from the baseline, each with a few images."""
        classes, samples, before = self.metrics.classes, self.samples, self.before
        if before is None or not self.metrics.labelled:
            return []
        rows = np.flatnonzero(samples.labelled)
        labels, old, new = samples.labels[rows], before.prediction[rows], self.after.prediction[rows]
        was, now = (Counter(zip(labels.tolist(), each.tolist(), strict=True)) for each in (old, new))
        changed = [pair for pair in was | now if pair[0] != pair[1] and was[pair] != now[pair]]
        pairs = []
        for label, prediction in sorted(changed, key=lambda pair: (-abs(now[pair] - was[pair]), pair))[:PAIRS_SHOWN]:
            examples = rows[(labels == label) & ((old == prediction) != (new == prediction))][:OF_PAIR]
            pairs.append(
                {
                    "label": classes[label],
                    "prediction": classes[prediction],
                    "was": was[label, prediction],
                    "now": now[label, prediction],
                    "images": [self.picture(row) for row in examples],
                }
            )
        return pairs

    def relabelled(self, changed: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
        """Images whose refined label differs from the zero-shot model's, the most frequent changes first. `changed`:
        image -> (zero-shot label, refined label)."""
        sources = self.samples.sources.tolist()
        rows = [row for row, source in enumerate(sources) if source in changed]
        frequency = Counter(changed[sources[row]] for row in rows)
        rows.sort(key=lambda row: (-frequency[changed[sources[row]]], changed[sources[row]]))
        shown = limit_kinds(rows, lambda row: changed[sources[row]], RELABELLED_SHOWN)
        names = ("zero_shot", "refined")
        return [self.picture(row) | dict(zip(names, changed[sources[row]], strict=True)) for row in shown]

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


def limit_kinds(rows: Iterable[int], kind: Callable[[int], Hashable], limit: int) -> list[int]:
    """The first rows, at most OF_KIND of each kind, and at most `limit`."""
    counts, chosen = Counter[Hashable](), list[int]()
    for row in rows:
        counts[kind(row)] += 1
        if counts[kind(row)] <= OF_KIND:
            chosen.append(row)
        if len(chosen) == limit:
            break
    return chosen


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
