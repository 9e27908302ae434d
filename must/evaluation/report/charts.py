"""The report's charts as inline SVG: pure functions of numbers. Colours come from the page's style sheet.

Every chart is about 320 units wide, so that its text stays readable on a phone; the page's grid decides how many are
side by side.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from must.evaluation.table import NOTHING

CHART_WIDTH, CHART_HEIGHT = 320, 200
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 40, 16, 12, 26
POINTS = 240  # of a line; more would not be visible


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
            parts.append(f'<text x="{MARGIN_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{number(value, percent)}</text>')
        for value in x_ticks:
            text = number(value, percent_x)
            parts.append(f'<text x="{self.x(value)}" y="{self.bottom + 16}" text-anchor="middle">{text}</text>')
        return "".join(parts)


def line_chart(title: str, lines: Sequence[ChartLine], percent: bool = False, zero: bool = False) -> Markup:
    """Lines over training steps. `percent`: values are fractions; `zero`: the axis begins at 0."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = (0.0 if zero else min(ys)), max(ys)
    ticks = nice_ticks(low, high, 4, limit=(0.0, 1.0) if percent else None)
    axes = Axes((min(xs), max(xs)), (ticks[0], ticks[-1]))
    parts = [axes.grid([t for t in nice_ticks(min(xs), max(xs), 4) if min(xs) <= t <= max(xs)], ticks, percent)]
    parts.extend(polyline(line, axes) for line in lines)
    return svg(title, "".join(parts))


def reliability_chart(title: str, models: Sequence[tuple[str, str, Sequence[dict[str, float]]]]) -> Markup:
    """Accuracy over confidence, one dot per bin, its area the share of images. `models`: (name, style, bins)."""
    axes = Axes((0, 1), (0, 1), height=300)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    parts = [axes.grid(ticks, ticks, percent=True, percent_x=True)]
    parts.append(f'<line class="ideal" x1="{axes.x(0)}" y1="{axes.y(0)}" x2="{axes.x(1)}" y2="{axes.y(1)}"/>')
    for name, style, bins in models:
        total = sum(row["images"] for row in bins)
        points = [(row["confidence"], row["accuracy"]) for row in bins]
        parts.append(polyline(ChartLine(name, f"{style} faint", points), axes))
        for row in bins:
            radius = round(2 + 9 * math.sqrt(row["images"] / total), 1)
            hint = f"{name}: {row['images']} images, confidence {row['confidence']:.0%}, accuracy {row['accuracy']:.0%}"
            parts.append(
                f'<circle class="{style}" cx="{axes.x(row["confidence"])}" cy="{axes.y(row["accuracy"])}" r="{radius}">'
                f"<title>{escape(hint)}</title></circle>"
            )
    return svg(title, "".join(parts), height=300)


def polyline(line: ChartLine, axes: Axes) -> str:
    step = max(1, math.ceil(len(line.points) / POINTS))
    points = [*line.points[:-1:step], line.points[-1]]
    path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in points)
    return f'<polyline class="{line.style}" points="{path}"><title>{escape(line.name)}</title></polyline>'


def svg(title: str, content: str, height: int = CHART_HEIGHT) -> Markup:
    """`content`: numbers and escaped text only."""
    return Markup(f'<svg viewBox="0 0 {CHART_WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>')


def nice_ticks(low: float, high: float, count: int, limit: tuple[float, float] | None = None) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose low..high, about `count` steps."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return [t for t in ticks if limit[0] <= t <= limit[1]] or ticks if limit else ticks


def number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g}%"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def points(value: float | None) -> str:
    return NOTHING if value is None else signed(100 * value, 1)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
