"""The report's figures: charts as inline SVG, pictures, and the map of images.

Charts are pure functions of numbers; their colours come from the page's style sheet. Every chart is about 320 units
wide, so that its text stays readable on a phone; the page's grid decides how many are side by side. Pictures show
mistakes, changed predictions and changed confusions. The map places images by the first two principal components of
their features. N images, D numbers a feature."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from PIL import Image, ImageOps

from must.base.errors import MustError
from must.config import EvaluateConfig
from must.data.image.decode import decode
from must.data.reader import ShardReader
from must.evaluation.metrics import Samples, Scores
from must.evaluation.result import NOTHING, Metrics, RefinedLabels, format_percent

CHART_WIDTH, CHART_HEIGHT = 320, 200
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 40, 16, 12, 26
POINTS = 240  # of a line; more would not be visible
OF_KIND = 3  # pictures at most of one change or mistake, so that no frequent one fills the page
IMAGES_SHOWN, CHANGES_SHOWN, RELABELLED_SHOWN = 18, 9, 24
PAIRS_SHOWN, OF_PAIR = 8, 4
ROWS_SHOWN = 40  # classes or findings with pictures of unlabeled images
SIDE, SMALL_SIDE = 192, 96  # pixels; shown a little smaller
QUALITY = 78
COLOURS, MAP_SIDE = 10, 96  # classes with a colour of their own; pixels of a picture on the map
MAP_IMAGES = 240  # at most

Features = tuple[np.ndarray, np.ndarray]  # int64 [N], rows of `Samples`, MAP_IMAGES at most; float32 [N, D]


class ChartLine(NamedTuple):
    name: str
    style: str  # a class of the style sheet: adapted, baseline, curve-1, ...
    points: Sequence[tuple[float, float]]


class Axes:
    """Converts data to page coordinates, and draws the grid with its numbers."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int = CHART_HEIGHT) -> None:
        self.x_range, self.y_range = x, y
        self.right, self.bottom = CHART_WIDTH - MARGIN_RIGHT, height - MARGIN_BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(MARGIN_LEFT + (self.right - MARGIN_LEFT) * (value - low) / ((high - low) or 1), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.bottom - (self.bottom - MARGIN_TOP) * (value - low) / ((high - low) or 1), 1)

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool, percent_x: bool = False) -> str:
        parts = []
        for value, y in zip(y_ticks, map(self.y, y_ticks), strict=True):
            parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" y1="{y}" x2="{self.right}" y2="{y}"/>')
            parts.append(
                f'<text x="{MARGIN_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{format_number(value, percent)}</text>'
            )
        for value in x_ticks:
            text = format_number(value, percent_x)
            parts.append(f'<text x="{self.x(value)}" y="{self.bottom + 16}" text-anchor="middle">{text}</text>')
        return "".join(parts)


def draw_lines(title: str, lines: Sequence[ChartLine], percent: bool = False, zero: bool = False) -> Markup:
    """Lines over training steps. `percent`: values are fractions; `zero`: the axis begins at 0."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = (0.0 if zero else min(ys)), max(ys)
    ticks = choose_ticks(low, high, 4, limit=(0.0, 1.0) if percent else None)
    axes = Axes((min(xs), max(xs)), (ticks[0], ticks[-1]))
    parts = [axes.grid([t for t in choose_ticks(min(xs), max(xs), 4) if min(xs) <= t <= max(xs)], ticks, percent)]
    parts.extend(draw_polyline(line, axes) for line in lines)
    return make_svg(title, "".join(parts))


def draw_polyline(line: ChartLine, axes: Axes) -> str:
    step = max(1, math.ceil(len(line.points) / POINTS))
    points = [*line.points[:-1:step], line.points[-1]]
    path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in points)
    return f'<polyline class="{line.style}" points="{path}"><title>{escape(line.name)}</title></polyline>'


def make_svg(title: str, content: str, height: int = CHART_HEIGHT) -> Markup:
    """`content`: numbers and escaped text only."""
    return Markup(f'<svg viewBox="0 0 {CHART_WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>')


def choose_ticks(low: float, high: float, count: int, limit: tuple[float, float] | None = None) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose low..high, about `count` steps."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return [t for t in ticks if limit[0] <= t <= limit[1]] or ticks if limit else ticks


def format_number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g}%"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def format_points(value: float | None) -> str:
    return NOTHING if value is None else format_signed(100 * value, 1)


def format_signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


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
            "confidence": format_percent(float(after.confidence[row]), 0),
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
