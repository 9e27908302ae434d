"""The bundled target domain: real handwritten digits, for a model that has only seen computer fonts.

The 1,797 images are the test part of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
1998, doi:10.24432/C50P49, CC BY 4.0; 8 x 8 pixels of 0 to 16, 13 writers), in ``digits.csv.gz`` as scikit-learn carries
them: a line an image, its 64 pixels and its digit. They are enlarged to 32 x 32 and split once, by a hash of their
pixels, into three parts:

- ``unlabeled`` (1,097 images): what MUST trains on; file names and folders carry no label;
- ``test`` (500): labelled, for reporting only;
- ``validation`` (200): labelled, never trained on and never reported; the bundled settings were chosen on it.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "the digit {}.",
    "the number {}.",
    "a picture of the digit {}.",
    "a scan of the number {}.",
    "a blurry photo of the digit {}.",
    "a drawing of the digit {}.",
)
DIGITS = Path(__file__).with_name("digits.csv.gz")
IMAGE_SIZE = 32
PARTS = {"test": 500, "validation": 200, "unlabeled": 1097}


def digit_parts() -> dict[str, list[tuple[Image.Image, str]]]:
    """The three parts of the data, each a list of (32 x 32 grey image, class name) in a fixed order."""
    table = np.loadtxt(DIGITS, delimiter=",")
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    digits = table[:, -1].astype(int)
    order = sorted(range(len(pixels)), key=lambda i: hashlib.sha256(pixels[i].tobytes()).digest())
    parts, start = {}, 0
    for part, count in PARTS.items():
        chosen = order[start : start + count]
        parts[part] = [(enlarge(pixels[i]), CLASSES[digits[i]]) for i in chosen]
        start += count
    assert start == len(pixels)
    return parts


def enlarge(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def write_images(folder: Path, parts: tuple[str, ...] = ("unlabeled", "test")) -> dict[str, int]:
    """Writes PNG files, ``unlabeled/00000.png`` without and ``test/<class>/00000.png`` with labels; returns counts."""
    counts = {}
    everything = digit_parts()
    for part in parts:
        for number, (image, label) in enumerate(everything[part]):
            path = folder / part / ("" if part == "unlabeled" else label) / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        counts[part] = len(everything[part])
    return counts
