"""The report's pictures: mistakes, changed predictions and changed confusions."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from must.data.image.decode import decode
from must.data.loading.reader import ShardReader
from must.evaluation.result import Metrics
from must.evaluation.scores import Samples, Scores

IMAGES_SHOWN, CHANGES_SHOWN, RELABELLED_SHOWN = 18, 9, 24
OF_KIND = 3
PAIRS_SHOWN, OF_PAIR = 8, 4
SIDE, QUALITY = 192, 78  # pixels, shown a little smaller; of JPEG


@dataclass(frozen=True)
class Pictures:
    """The images of a report, as dicts for its template."""

    reader: ShardReader
    metrics: Metrics
    samples: Samples
    after: Scores
    before: Scores | None

    def thumbnail(self, sample: int) -> str:
        """The middle square, at most SIDE pixels wide, as a data URI."""
        image = decode(self.reader.image(sample), self.reader.index.max_pixels, shorter_side=SIDE)
        side = min(*image.size, SIDE)
        data = io.BytesIO()
        ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS).save(data, "JPEG", quality=QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()

    def gallery(self) -> dict[str, Any]:
        """The most confident mistakes; without labels, the most confident changes from the baseline."""
        samples, after, before = self.samples, self.after, self.before
        if self.metrics.labelled:
            title, rows, kinds = "mistakes", samples.labelled & (after.prediction != samples.labels), samples.labels
        elif before is not None:
            title, rows, kinds = "changes", after.prediction != before.prediction, before.prediction
        else:
            title, rows, kinds = "predictions", np.ones(len(samples.numbers), bool), after.prediction
        return {"title": f"Most confident {title}", "images": self.most_confident(rows, kinds, IMAGES_SHOWN)}

    def most_confident(self, rows: np.ndarray, kinds: np.ndarray, most: int) -> list[dict[str, Any]]:
        """Pictures of the images of `rows`, bool [N], that the model is most confident of; at most OF_KIND of a pair of
        `kinds`, int [N], and the model's class."""
        order = np.flatnonzero(rows)
        order = order[np.argsort(-self.after.confidence[order], kind="stable")].tolist()
        pairs = list(zip(kinds.tolist(), self.after.prediction.tolist(), strict=True))
        return [self.picture(row) for row in limit_per_kind(order, pairs.__getitem__, most)]

    def changes(self) -> list[tuple[str, str, list[dict[str, Any]]]]:
        """(title, tone, most confident images) of the images that only the model, and only the baseline, has right."""
        samples, after, before = self.samples, self.after, self.before
        if before is None or not self.metrics.labelled:
            return []
        right, was_right = (samples.labelled & (scores.prediction == samples.labels) for scores in (after, before))
        groups = []
        for title, tone, rows in (("Right now", "good", right & ~was_right), ("Wrong now", "bad", was_right & ~right)):
            images = self.most_confident(rows, before.prediction, CHANGES_SHOWN)
            groups.append((f"{title}: {rows.sum():,}", tone, images))
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
        sources = self.samples.sources
        rows = [row for row, source in enumerate(sources) if source in changed]
        pairs = {row: changed[sources[row]] for row in rows}
        frequency = Counter(pairs.values())
        rows.sort(key=lambda row: (-frequency[pairs[row]], pairs[row]))
        shown = limit_per_kind(rows, pairs.__getitem__, RELABELLED_SHOWN)
        return [self.picture(row) | dict(zip(("zero_shot", "refined"), pairs[row], strict=True)) for row in shown]

    def picture(self, row: int) -> dict[str, Any]:
        classes, samples, after, before = self.metrics.classes, self.samples, self.after, self.before
        return {
            "data": self.thumbnail(int(samples.numbers[row])),
            "source": samples.sources[row],
            "label": classes[samples.labels[row]] if samples.labels[row] >= 0 else None,
            "adapted": classes[after.prediction[row]],
            "confidence": f"{after.confidence[row]:.0%}",
            "baseline": classes[before.prediction[row]] if before is not None else None,
        }


def limit_per_kind(rows: Iterable[int], kind_of: Callable[[int], Hashable], most: int) -> list[int]:
    """The first rows, at most OF_KIND of a kind, so that no frequent confusion fills the page."""
    counts = Counter[Hashable]()
    chosen = list[int]()
    for row in rows:
        counts[kind_of(row)] += 1
        if counts[kind_of(row)] <= OF_KIND and len(chosen) < most:
            chosen.append(row)
    return chosen
