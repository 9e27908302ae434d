"""Drawings of letters and icons as grey pictures, 64 x 64: source styles to pre-train on, target styles to adapt to.

A drawing is white ink on black. Everything is a pure function of the installed packages; pictures are cached as .npz.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.shifts.packages import (
    COLOUR,
    COMPUTER_FONTS,
    HANDWRITING,
    OUTLINE,
    ROOT,
    SOLID,
    font_file,
    icon_set,
)

CANVAS = 64
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ICONS = 60  # names: the ones that most sets have drawn
STROKES = (0, 1, 3)

Drawings = tuple[np.ndarray, np.ndarray]  # uint8 [N, CANVAS, CANVAS], class numbers [N]


def letters(style: str) -> Drawings:
    """Capitals: `computer` fonts in three stroke widths, or `handwriting` ones (fonts that look like it)."""
    pictures, labels = [], []
    for font_name in COMPUTER_FONTS if style == "computer" else HANDWRITING:
        font = ImageFont.truetype(str(font_file(font_name)), 44)
        for stroke in STROKES if style == "computer" else (0, 1):
            for number, letter in enumerate(LETTERS):
                pictures.append(glyph(letter, font, stroke))
                labels.append(number)
    return np.stack(pictures), np.array(labels)


def glyph(letter: str, font: ImageFont.FreeTypeFont, stroke: int) -> np.ndarray:
    picture = Image.new("L", (2 * CANVAS, 2 * CANVAS))
    ImageDraw.Draw(picture).text((CANVAS, CANVAS), letter, fill=255, font=font, anchor="mm", stroke_width=stroke)
    return framed(picture)


def framed(picture: Image.Image, side: int = 48) -> np.ndarray:
    """The ink itself in the middle of the canvas, its longer side of `side` pixels."""
    box = picture.getbbox() or (0, 0, *picture.size)
    ink = picture.crop(box)
    scale = side / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def icon_names() -> list[str]:
    """Names that at least six outline and six solid sets have, the most frequent ones, in alphabetical order."""
    counts = [Counter(name for source in styles for name in found(*source)) for styles in (OUTLINE, SOLID)]
    both = [name for name in counts[0] if counts[0][name] >= 6 and counts[1][name] >= 6 and name.isalpha()]
    both.sort(key=lambda name: (-counts[0][name] - counts[1][name], name))
    return sorted(both[:ICONS])


def found(name: str, suffix: str) -> dict[str, str]:
    """Icon name without the style's suffix -> its key in the set."""
    icons = icon_set(name)["icons"]
    return {key.removesuffix(suffix): key for key in icons if key.endswith(suffix)}


def icons(style: str) -> Drawings:
    """`outline`, `solid` or `colour` (duotone, coloured, pixel art): one drawing a set and name."""
    import cairosvg

    names = icon_names()
    pictures, labels = [], []
    for set_name, suffix in {"outline": OUTLINE, "solid": SOLID, "colour": COLOUR}[style]:
        keys, content = found(set_name, suffix), icon_set(set_name)
        for number, name in enumerate(names):
            if name not in keys:
                continue
            icon = content["icons"][keys[name]]
            width, height = (icon.get(side, content.get(side, 16)) for side in ("width", "height"))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#fff" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink">{icon["body"]}</svg>'
            )
            png = cairosvg.svg2png(bytestring=svg.encode(), output_width=96, output_height=96)
            pictures.append(framed(on_black(Image.open(io.BytesIO(png)))))
            labels.append(number)
    return np.stack(pictures), np.array(labels)


def on_black(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(canvas, picture.convert("RGBA")).convert("L")


def cached(name: str, make: Callable[[str], Drawings], style: str) -> Drawings:
    path = ROOT / "drawings" / f"{name}-{style}.npz"
    if not path.exists():
        pictures, labels = make(style)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, pictures=pictures, labels=labels)
    with np.load(path) as file:
        return file["pictures"], file["labels"]


def drawings(name: str, style: str) -> Drawings:
    """Of `letters` or `icons`."""
    return cached(name, {"letters": letters, "icons": icons}[name], style)


def class_names(name: str) -> list[str]:
    return list(LETTERS.lower()) if name == "letters" else icon_names()
