"""Drawings of the second panel's families, 64 x 64: a source style to pre-train on and a target style to adapt to.

kana: 142 Japanese syllables; kanji: 120 characters of the first school years; ideo: 300 of the Japanese standard's
first level; hangul: 300 Korean syllables; cyrillic: 33 capitals (computer fonts -> handwriting and display fonts).
emoji: 150 names (coloured sets -> flat and one-coloured ones). flags: 198 countries (sharp sets -> two others, half
faded to grey). display: the ten digits in ornamental fonts, for the bundled model. Everything is a pure function of the
packages in packages.py.
"""

from __future__ import annotations

import io
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.shifts.drawings import CANVAS, cached, framed
from benchmarks.shifts.packages import ROOT, icon_set

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
HANGUL_FONTS = {
    "source": (
        "ibm-plex-sans-kr", "gothic-a1", "gowun-batang", "gowun-dodum", "nanum-gothic", "nanum-myeongjo", "sunflower",
        "song-myung", "hahmlet", "noto-sans-kr", "noto-serif-kr", "nanum-gothic-coding",
    ),
    "target": (
        "nanum-pen-script", "nanum-brush-script", "gaegu", "hi-melody", "poor-story", "gamja-flower", "single-day",
        "cute-font", "yeon-sung", "do-hyeon", "jua", "kirang-haerang", "gugi", "black-han-sans",
    ),
}  # fmt: skip
KANJI = (
    "一右雨円王音下火花貝学気九休玉金空月犬見五口校左三山子四糸字耳七車手十出女小上森人水正生青夕石赤千川先早草足村大男竹中虫"
    "町天田土二日入年白八百文木本名目立力林六引羽雲園遠何科夏家歌画回会海絵外角楽活間丸岩顔汽記帰弓牛魚京強教近兄形計元言原戸"
)
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
DISPLAY_FONTS = (
    "bungee-shade", "creepster", "cabin-sketch", "fredericka-the-great", "ewert", "finger-paint", "monoton",
    "faster-one", "rubik-glitch", "nosifer", "butcherman", "eater", "sancreek", "rye", "press-start-2p", "vt323",
    "silkscreen", "bungee-inline", "bungee-outline", "fascinate",
)  # fmt: skip
EMOJI_SETS = {
    "source": ("noto", "twemoji", "emojione", "openmoji", "noto-v1"),
    "target": ("fluent-emoji-flat", "fluent-emoji-high-contrast", "emojione-monotone"),
}
FLAG_SETS = {"source": (("flag", "-4x3"), ("flag", "-1x1")), "target": (("flagpack", ""), ("cif", ""))}
EMOJI, HANGUL, IDEO = 150, 300, 300

Drawings = tuple[np.ndarray, np.ndarray]


def packages() -> list[str]:
    """npm packages that the families are drawn from."""
    fonts = [name for group in (KANA_FONTS, HANGUL_FONTS, CYRILLIC_FONTS) for style in group.values() for name in style]
    sets = [name for style in EMOJI_SETS.values() for name in style]
    sets += [name for style in FLAG_SETS.values() for name, _ in style]
    return [f"@fontsource/{name}" for name in (*fonts, *DISPLAY_FONTS)] + [f"@iconify-json/{name}" for name in sets]


def characters(name: str) -> list[str]:
    if name == "kana":
        found = [chr(code) for code in [*range(0x3042, 0x3094), *range(0x30A2, 0x30F4)]]
        spoken = [c for c in found if "SMALL" not in unicodedata.name(c)]
        return [c for c in spoken if unicodedata.name(c)[-2:] not in ("WI", "WE")]
    if name == "hangul":
        common = [chr(c) for c in range(0xAC00, 0xD7A4) if in_euc_kr(chr(c))]
        return sorted(np.random.default_rng(3).choice(common, HANGUL, replace=False).tolist())
    if name == "kanji":
        return list(KANJI)
    if name == "ideo":
        first = [bytes((row, cell)).decode("euc_jp") for row in range(0xB0, 0xCF) for cell in range(0xA1, 0xFF)]
        return sorted(np.random.default_rng(5).choice(first, IDEO, replace=False).tolist())
    if name == "cyrillic":
        return [chr(code) for code in range(0x410, 0x430)] + ["\u0401"]
    return list("0123456789")


def in_euc_kr(character: str) -> bool:
    try:
        return bool(character.encode("euc_kr"))
    except UnicodeEncodeError:
        return False


def letters(name: str, style: str) -> Drawings:
    script = {"hangul": "korean", "cyrillic": "cyrillic", "display": "latin"}.get(name, "japanese")
    fonts = {"japanese": KANA_FONTS, "korean": HANGUL_FONTS, "cyrillic": CYRILLIC_FONTS}.get(script)
    pictures, labels = [], []
    strokes = (0, 1, 3) if style == "source" else (0, 1)
    for font_name in fonts[style] if fonts else DISPLAY_FONTS:
        files = ROOT / "npm/node_modules/@fontsource" / font_name / "files"
        path = next(p for w in (400, 500, 300, 700) for p in files.glob(f"{font_name}-{script}-{w}-normal.woff2"))
        font = ImageFont.truetype(str(path), 44)
        missing = bytes(font.getmask("\uffff"))
        for number, character in enumerate(characters(name)):
            mask = font.getmask(character)
            if not mask.getbbox() or bytes(mask) == missing:
                continue
            for stroke in strokes:
                picture = Image.new("L", (2 * CANVAS, 2 * CANVAS))
                ImageDraw.Draw(picture).text((CANVAS, CANVAS), character, 255, font, "mm", stroke_width=stroke)
                pictures.append(framed(picture))
                labels.append(number)
    return np.stack(pictures), np.array(labels)


def emoji_names() -> list[str]:
    sets = {name: set(icon_set(name)["icons"]) for style in EMOJI_SETS.values() for name in style}
    drawn = [
        name for name in sorted(sets["noto"])
        if sum(name in sets[s] for s in EMOJI_SETS["source"]) >= 4
        and all(name in sets[s] for s in EMOJI_SETS["target"])
    ]  # fmt: skip
    return sorted(np.random.default_rng(4).choice(drawn, EMOJI, replace=False).tolist())


def flag_names() -> list[str]:
    sets = [{n.removesuffix(suffix) for n in icon_set(name)["icons"] if n.endswith(suffix)}
            for pairs in FLAG_SETS.values() for name, suffix in pairs]  # fmt: skip
    return sorted(name for name in set.intersection(*sets) if len(name) == 2)


def pictograms(name: str, style: str) -> Drawings:
    import cairosvg

    names = emoji_names() if name == "emoji" else flag_names()
    sets = [(s, "") for s in EMOJI_SETS[style]] if name == "emoji" else FLAG_SETS[style]
    pictures, labels = [], []
    for set_name, suffix in sets:
        content = icon_set(set_name)
        for number, key in enumerate(names):
            icon = content["icons"].get(key + suffix)
            if icon is None:
                continue
            width, height = (icon.get(side, content.get(side, 16)) for side in ("width", "height"))
            svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#fff" '
                   f'xmlns:xlink="http://www.w3.org/1999/xlink">{icon["body"]}</svg>')  # fmt: skip
            try:
                png = cairosvg.svg2png(bytestring=svg.encode(), output_width=64, output_height=64)
            except Exception as error:  # a drawing that the renderer does not know how to draw
                print(f"{set_name} {key}: {type(error).__name__}")
                continue
            over = Image.open(io.BytesIO(png)).convert("RGBA")
            canvas = Image.new("RGBA", over.size, (0, 0, 0, 255))
            flat = Image.alpha_composite(canvas, over).convert("RGB")
            drawn = np.asarray(square(flat))
            if drawn.std() > 10:  # else it was not drawn
                pictures.append(drawn)
                labels.append(number)
    return np.stack(pictures), np.array(labels)


def square(picture: Image.Image, side: int = 52) -> Image.Image:
    ink = picture.crop(picture.getbbox() or (0, 0, *picture.size))
    scale = side / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return canvas


def family(name: str, style: str) -> Drawings:
    make = pictograms if name in ("emoji", "flags") else letters
    return cached(name, lambda s: make(name, s), style)


def names_of(name: str) -> list[str]:
    if name == "emoji":
        return [key.replace("-", " ") for key in emoji_names()]
    if name == "flags":
        return [f"flag {key}" for key in flag_names()]
    if name == "display":
        return ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    if name in ("kanji", "ideo"):
        return [f"{ord(character):x}" for character in characters(name)]
    words = {" letter": "", " syllable": "", " capital": ""}
    found = []
    for character in characters(name):
        text = unicodedata.name(character).lower()
        for word, other in words.items():
            text = text.replace(word, other)
        found.append(text)
    return found


MODELS = {"kanji": ("kanji",), "scripts": ("kana", "cyrillic"), "hangul": ("hangul",), "picto": ("emoji", "flags")}
STEPS = {"kanji": 600, "scripts": 500, "hangul": 450, "picto": 400}
CAPTIONS = ["a photo of the {}.", "a picture of the {}.", "a drawing of the {}.", "the {}."]


def source(model: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, class numbers and names of all families that a model is pre-trained on."""
    pictures, labels = [], []
    names: list[str] = []
    for name in MODELS[model]:
        drawn, numbers = family(name, "source")
        pictures.append(drawn)
        labels.append(numbers + len(names))
        names += names_of(name)
    return np.concatenate(pictures), np.concatenate(labels), names
