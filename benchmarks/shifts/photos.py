"""Three families of photographs, each with a style that the image tower was not pre-trained on.

The folder in the variable MUST_PHOTOS (by default build/shifts/photos) has a folder or a zip of each data set, with
PART/CLASS/NAME.jpg inside:

| family | data set (GitHub) | licence | classes |
|---|---|---|---|
| signs | ardamavi/Sign-Language-Digits-Dataset, as `signdigits` | Apache-2.0 | 10 hand signs |
| clothes | alexeygrigorev/clothing-dataset-small, as `clothing` | CC0 1.0 | 10, of unequal size |
| groceries | marcusklasson/GroceryStoreDataset, as `groceries` | MIT | 81 |

Each is split into a source, an unlabeled and a test part without common photographs. Photographs of one person (signs)
and of one shelf (groceries) stay in one part. The tower is pre-trained on the source part in another style: posterised,
as a drawing of the edges, or blurred (signs and clothes in other colours); for groceries also on the product pictures,
starting from the image tower of clothes. The unlabeled and the test part are not changed.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from benchmarks.shifts.families import ROOT

SETS = {"signs": "signdigits", "clothes": "clothing", "groceries": "groceries"}
PREPROCESS: dict[str, Any] = {"size": 40, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
SIZE = PREPROCESS["size"]  # pixels a side of the towers' input
CANVAS = 64  # pixels a side for pre-training, which distorts and crops the images
STEPS = {"signs": 450, "clothes": 600, "groceries": 1000}
CAPTIONS = ["a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "a drawing of a {}."]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Photographs = tuple[np.ndarray, np.ndarray]  # uint8 [N, S, S, 3], class numbers [N]


def folder() -> Path:
    return Path(os.environ.get("MUST_PHOTOS", ROOT / "photos"))


def files(name: str) -> Iterator[tuple[str, str, str, bytes]]:
    """(part, class, name, bytes) of a data set, in the order of the names."""
    base = folder() / SETS[name]
    if base.is_dir():
        for path in sorted(base.glob("*/*/*.jpg")):
            yield *path.relative_to(base).parts, path.read_bytes()  # type: ignore[misc]
        return
    with zipfile.ZipFile(base.with_suffix(".zip")) as archive:
        for entry in sorted(archive.namelist()):
            if entry.endswith(".jpg"):
                part, label, file = Path(entry).parts[-3:]
                yield part, label, file, archive.read(entry)


def class_names(name: str) -> list[str]:
    labels = sorted({label for _, label, _, _ in files(name)})
    return [f"hand sign {DIGITS[int(k)]}" for k in labels] if name == "signs" else [k.replace("-", " ") for k in labels]


def parts(name: str) -> dict[str, list[tuple[str, bytes]]]:
    """source, unlabeled and test, each a list of (class, bytes); groceries also iconic."""
    rows = list(files(name))
    if name == "signs":  # ten photographs a person follow each other in the numbers of the files
        rows.sort(key=lambda row: int("".join(filter(str.isdigit, Path(row[2]).stem))))
        cuts = [round(0.35 * len(rows)), round(0.8 * len(rows))]
        chosen = {"source": rows[: cuts[0]], "unlabeled": rows[cuts[0] : cuts[1]], "test": rows[cuts[1] :]}
    elif name == "clothes":
        train = [row for row in rows if row[0] == "train"]
        chosen = {"source": train[::5] + train[1::5], "test": [row for row in rows if row[0] != "train"]}
        chosen["unlabeled"] = [row for number, row in enumerate(train) if number % 5 > 1]
    else:  # the set's own test part was taken in other shops; of a class, one shelf's photographs follow each other
        chosen = {"source": [row for row in rows if row[0] == "train"], "unlabeled": [], "test": []}
        chosen["iconic"] = [row for row in rows if row[0] == "iconic"]
        for label in sorted({row[1] for row in rows}):
            of_class = [row for row in rows if row[0] == "test" and row[1] == label]
            cut = round(0.6 * len(of_class))
            chosen["unlabeled"] += of_class[:cut]
            chosen["test"] += of_class[cut:]
    return {part: [(label, data) for _, label, _, data in rows] for part, rows in chosen.items()}


def photographs(name: str, part: str, size: int = SIZE) -> list[tuple[Image.Image, int]]:
    rows = parts(name).get(part, [])
    labels = sorted({label for _, label, _, _ in files(name)})
    opened = ((Image.open(io.BytesIO(data)).convert("RGB"), labels.index(label)) for label, data in rows)
    return [(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC), label) for image, label in opened]


def stack(pairs: list[tuple[Image.Image, int]]) -> Photographs:
    return np.stack([np.asarray(image) for image, _ in pairs]), np.array([label for _, label in pairs])


def looks(image: Image.Image, rng: np.random.Generator, recolour: bool) -> list[Image.Image]:
    """The source's styles: posterised, as a drawing of the edges, and blurred; `recolour`: also in other colours."""
    grey = ImageOps.autocontrast(ImageOps.grayscale(image))
    edges = ImageOps.autocontrast(ImageOps.invert(grey.filter(ImageFilter.FIND_EDGES))).convert("RGB")
    pale = grey.convert("RGB")
    if not recolour:
        return [
            ImageOps.posterize(image, 2),
            Image.blend(edges, image, 0.4),
            Image.blend(pale, image, 0.5).filter(ImageFilter.GaussianBlur(1)),
        ]
    hue, saturation, value = image.convert("HSV").split()
    other = hue.point([(v + int(rng.integers(40, 216))) % 256 for v in range(256)])
    posterised = ImageOps.posterize(Image.merge("HSV", (other, saturation, value)).convert("RGB"), 2)
    return [posterised, edges, pale.filter(ImageFilter.GaussianBlur(2))]


def source(name: str) -> Photographs:
    """The images for the tower's pre-training."""
    rng = np.random.default_rng(6)
    recolour = name != "groceries"  # many of the 81 products differ only in colour
    photos = photographs(name, "source", CANVAS)
    pairs = [(look, label) for image, label in photos for look in looks(image, rng, recolour)]
    for image, label in photographs(name, "iconic", CANVAS):
        pairs += [(image, label)] * 6 + [(look, label) for look in looks(image, rng, recolour)] * 2
    return stack(pairs)


def target(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unlabeled photographs, their classes, test photographs, their classes."""
    return (*stack(photographs(name, "unlabeled")), *stack(photographs(name, "test")))
