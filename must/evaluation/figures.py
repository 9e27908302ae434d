"""The report's pictures: a gallery of all labels, changed predictions, and curves of the training as inline SVG.

Charts are pure functions of numbers; their colours come from the page's style sheet. N images, K classes."""

import base64
import io
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from PIL import Image, ImageOps

from must.base import storage
from must.base.errors import MustError
from must.base.text import read_back
from must.config import EvaluateConfig
from must.data.image.decode import decode
from must.data.reader import ShardReader
from must.evaluation.metrics import Samples, Scores
from must.evaluation.result import LabelRow, Metrics, RefinedLabels
from must.model.bundle import LOG_FILE

OF_KIND, CHANGES_SHOWN = 3, 9  # pictures at most of one change, so that no frequent one fills the page; and of all
GALLERY_SHOWN, MANY = 3_000, 600  # pictures at most, and so many that they are smaller
SIDE, SMALL_SIDE, QUALITY = 96, 64, 75  # pixels
CHART_WIDTH, CHART_HEIGHT, MARGIN = 320, 150, (44, 8, 12, 22)  # left, right, top, bottom
POINTS = 240  # of a line; more would not be visible
SURE = ((0.9, "p90"), (0.5, "p50"), (0.0, "p0"))  # by probability, where nothing is promised


class Pictures:
    """The images of a report, as dicts for its template."""

    def __init__(
        self, config: EvaluateConfig, metrics: Metrics, samples: Samples, after: Scores, before: Scores | None,
        refined: RefinedLabels | None,
    ) -> None:  # fmt: skip
        self.metrics, self.samples, self.after, self.before, self.refined = metrics, samples, after, before, refined
        self.reader = ShardReader(config.shards, config.split, sha256=config.index_sha256)

    def gallery(self) -> list[dict[str, Any]]:
        """A dict per class, in the model's order, with its pictures, the surest of the model first: of the refined
        labels, else of the predictions on the evaluated split. Of many pictures GALLERY_SHOWN are chosen evenly."""
        rows, numbers, reader = self.list_predictions(), self.samples.numbers.tolist(), self.reader
        if self.refined:
            rows, numbers = self.refined.rows, []
            with suppress(MustError, OSError):  # the images may not be there any more
                reader = ShardReader(self.refined.shards, self.refined.split, sha256=self.refined.index_sha256)
                names = reader.sources(range(len(reader)))
                of_name = {read_back(name): number for number, name in enumerate(names)}
                numbers = [of_name[row.image] for row in rows]
        of_class = defaultdict[str, list[int]](list)
        for place, row in enumerate(rows):
            of_class[row.name].append(place)
        facts = {row["class"]: row for row in self.refined.classes} if self.refined else {}
        step, side = max(1.0, len(rows) / GALLERY_SHOWN), SIDE if len(rows) <= MANY else SMALL_SIDE
        kinds, order = [], {name: number for number, name in enumerate(self.metrics.classes)}
        for name in sorted(of_class, key=lambda name: order.get(name, len(order))):
            places = sorted(of_class[name], key=lambda place: (rows[place].person, -rows[place].probability))
            shown = [places[int(n * step)] for n in range(math.ceil(len(places) / step))] if numbers else []
            mine = [rows[place] for place in places]
            kinds.append({
                "name": name, "images": len(mine), "sure": count_sure(mine), "named": sum(row.person for row in mine),
                "facts": facts.get(name),
                "pictures": [
                    {"data": thumbnail(reader, numbers[n], side), "row": rows[n], "groups": list_groups(rows[n])}
                    for n in shown
                ],
            })  # fmt: skip
        return kinds

    def list_predictions(self) -> list[LabelRow]:
        """The model's, of the evaluated split."""
        classes, samples, after = self.metrics.classes, self.samples, self.after
        old = after.prediction if self.before is None else self.before.prediction
        return [
            LabelRow(source, classes[now], float(sure), classes[was], label=classes[label] if label >= 0 else "")
            for source, now, sure, was, label in zip(
                samples.sources, after.prediction, after.confidence, old, samples.labels, strict=True
            )
        ]

    def changes(self) -> list[tuple[str, str, list[dict[str, Any]]]]:
        """(title, tone, most confident images) of the images that only the model, and only the baseline, has right;
        without labels of all whose class changed."""
        samples, after, before = self.samples, self.after, self.before
        if before is None:
            return []
        chosen = [("Changed", "", after.prediction != before.prediction)]
        if self.metrics.labelled:
            right, was_right = (samples.labelled & (scores.prediction == samples.labels) for scores in (after, before))
            chosen = [("Right now", "good", right & ~was_right), ("Wrong now", "bad", was_right & ~right)]
        return [(f"{title}: {rows.sum():,}", tone, self.surest(rows)) for title, tone, rows in chosen]

    def surest(self, chosen: np.ndarray) -> list[dict[str, Any]]:
        """Pictures of `chosen` images, bool [N], the most confident first, at most OF_KIND of each change."""
        assert self.before is not None
        rows, counts, shown = np.flatnonzero(chosen), Counter[tuple[int, int]](), list[dict[str, Any]]()
        predictions = self.list_predictions()
        for row in rows[np.argsort(-self.after.confidence[rows], kind="stable")].tolist():
            kind = int(self.before.prediction[row]), int(self.after.prediction[row])
            counts[kind] += 1
            if counts[kind] <= OF_KIND and len(shown) < CHANGES_SHOWN:
                data = thumbnail(self.reader, int(self.samples.numbers[row]), SIDE)
                shown.append({"data": data, "row": predictions[row]})
        return shown


def count_sure(rows: Iterable[LabelRow]) -> int | None:
    """Labels of the model that need not be looked at; None: nothing is promised."""
    promised = [row.accepted and not row.person for row in rows if row.accepted is not None]
    return sum(promised) if promised else None


def list_groups(row: LabelRow) -> str:
    """The groups of the page's filter that a picture is in."""
    groups = [next(name for least, name in SURE if row.probability >= least)]
    if row.person:
        groups = ["person"]
    elif row.accepted is not None:
        groups.append("sure" if row.accepted else "left")
    return " ".join([*groups, *(["wrong"] if row.label not in ("", row.name) else [])])


def thumbnail(reader: ShardReader, sample: int, max_side: int) -> str:
    """The middle square, at most `max_side` pixels wide, as a data URI."""
    image = decode(reader.image(sample), reader.index.max_pixels, max_side, reader.index.levels)
    side, data = min(max_side, *image.size), io.BytesIO()
    ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS).save(data, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


class Curve(NamedTuple):
    title: str
    names: list[str]
    chart: Markup


CURVES: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Self-training loss", {"loss_self_training": "cross entropy with the pseudo-labels"}, False),
    ("Image losses", {"loss_reconstruction": "reconstruction", "loss_alignment": "alignment"}, False),
    ("Class balance", {"loss_fairness": "smaller is nearer to equal shares, or those given"}, False),
    ("Confident pseudo-labels", {"confident": "share of a batch"}, True),
    ("Same class", {"agreement": "teacher and zero-shot", "stability": "student and teacher"}, True),
)


def draw_training_curves(lines: list[dict[str, Any]]) -> list[Curve]:
    """A chart for each row of CURVES of which train_log.jsonl has values."""
    curves = []
    for title, names, is_share in CURVES:
        plotted = {
            name: [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
            for key, name in names.items()
        }
        if plotted := {name: points for name, points in plotted.items() if len(points) > 1}:
            curves.append(Curve(title, [*plotted], draw_lines(title, [*plotted.values()], is_share)))
    return curves


def read_training_log(bundle: str) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl beside the bundle's weights; none if there is no log.

    Incomplete lines (after a kill) and lines without a step are skipped."""
    uri = storage.join(bundle, LOG_FILE)
    texts = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    lines = [storage.parse_object_or_none(text, dict) for text in texts]
    return [line for line in lines if line and is_number(line.get("step"))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def draw_lines(title: str, lines: Sequence[Sequence[tuple[float, float]]], is_share: bool) -> Markup:
    """Lines of (step, value), with the lowest and the highest of both axes; of shares 0 and 1."""
    steps, values = ([point[axis] for line in lines for point in line] for axis in (0, 1))
    first, last, low, high = min(steps), max(steps), *((0.0, 1.0) if is_share else (min(values), max(values)))
    left, right, top, bottom = MARGIN[0], CHART_WIDTH - MARGIN[1], MARGIN[2], CHART_HEIGHT - MARGIN[3]

    def place(step: float, value: float) -> str:
        x = left + (right - left) * (step - first) / ((last - first) or 1)
        return f"{x:.1f},{bottom - (bottom - top) * (value - low) / ((high - low) or 1):.1f}"

    parts = []
    for y, value in ((top, high), (bottom, low)):
        parts.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        text = f"{value:.0%}" if is_share else f"{value:.3g}"
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{text}</text>')
    for x, anchor, step in ((left, "start", first), (right, "end", last)):
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="{anchor}">step {step:,}</text>')
    for number, line in enumerate(lines):
        points = [*line[: -1 : max(1, math.ceil(len(line) / POINTS))], line[-1]]
        path = " ".join(place(*point) for point in points)
        parts.append(f'<polyline class="curve-{number}" points="{path}"/>')
    size = f'viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}"'
    return Markup(f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')
