"""docs/pictures/evidence.svg: z of zero-shot's look-alikes against the true change, of all rungs in judged.json.

python -m benchmarks.shifts.picture
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.shifts.judge import ALPHAS, JUDGED
from must.method.select.ladder import SLOPE

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "evidence.svg"
INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
MANY, FEW = "#b54708", "#0b63ce"  # tasks of over 30 classes, and others
LEFT, TOP, WIDTH, HEIGHT = 60, 60, 720, 380
CHANGES, ZS = (-25.0, 25.0), (-5.0, 14.0)


def main() -> None:
    parts = [text(20, 26, "What look-alikes say of a rung, and what is true", INK, 15, weight="bold")]
    parts.append(text(20, 44, "a dot a rung; filled where it may be kept at once", GREY, 12))
    for z in range(-4, 14, 2):
        parts.append(f'<path d="M{LEFT} {down(z):.1f}h{WIDTH}" stroke="{GREY if z == 0 else PALE}"/>')
        parts.append(text(LEFT - 8, down(z) + 4, f"{z:+d}" if z else "z = 0", GREY, 11, "end"))
    for change in range(-20, 21, 10):
        parts.append(f'<path d="M{across(change):.1f} {TOP}v{HEIGHT}" stroke="{GREY if change == 0 else PALE}"/>')
        parts.append(text(across(change), TOP + HEIGHT + 18, f"{change:+d}" if change else "0", GREY, 11, "middle"))
    parts.append(text(LEFT + WIDTH, TOP + HEIGHT + 36, "points of top-1 against zero-shot", GREY, 12, "end"))
    parts.append(text(LEFT, TOP + HEIGHT + 36, "over 30 classes", MANY, 12))
    parts.append(text(LEFT + 100, TOP + HEIGHT + 36, "fewer", FEW, 12))
    for row in json.loads(JUDGED.read_text()):
        colour = MANY if row["classes"] > 30 else FEW
        for alpha, z, change in list(zip(ALPHAS, row["z"], row["points"], strict=False))[1:]:
            fill = colour if z > SLOPE * alpha else "none"
            at = f'cx="{across(max(change, CHANGES[0])):.1f}" cy="{down(max(z, ZS[0])):.1f}"'
            parts.append(f'<circle {at} r="2.6" stroke="{colour}" fill="{fill}"/>')
    size = f'width="{LEFT + WIDTH + 30}" height="{TOP + HEIGHT + 50}"'
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


def across(change: float) -> float:
    return LEFT + WIDTH * (change - CHANGES[0]) / (CHANGES[1] - CHANGES[0])


def down(z: float) -> float:
    return TOP + HEIGHT * (ZS[1] - z) / (ZS[1] - ZS[0])


def text(x: float, y: float, words: str, colour: str, size: int, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{words}</text>'
    )


if __name__ == "__main__":
    main()
