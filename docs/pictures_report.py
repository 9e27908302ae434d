"""The picture of docs/report.md: a real report, shortened, with numbered arrows to the parts that the page explains."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

# Targets of the arrows, in the order of docs/report.md: elements, then headings of sections
PARTS = ["h1", ".lead", ".tiles", "summary"]
SECTIONS = ["By class", "Confusions that changed most", "None of these", "Most confident mistakes", "What was kept"]
WIDTH, HEIGHT = 860, 3600
DRAW = """
const points = POINTS, body = document.body, headings = [...document.querySelectorAll("section h2")];
for (const section of document.querySelectorAll("section"))
  if (!points.includes(section.querySelector("h2").textContent)) section.remove();
const more = ".pair:nth-of-type(n+4), .gallery figure:nth-of-type(n+5), section details, footer, nav";
for (const one of document.querySelectorAll(more)) one.remove();
document.querySelector("main").style.cssText = "padding: 1rem 1.25rem 1rem 6.5rem";
points.forEach((point, at) => {
  const heading = headings.find(one => one.isConnected && one.textContent === point);
  const target = (heading || document.querySelector(point)).getBoundingClientRect();
  const y = target.top + Math.min(target.height / 2, 30), colour = "#c2410c";
  body.insertAdjacentHTML("beforeend", `<svg style="position:absolute;left:0;top:${y - 24}px;width:104px" height="48"
    viewBox="0 0 104 48"><circle cx="26" cy="24" r="19" fill="${colour}"/>
    <text x="26" y="33" text-anchor="middle" style="font:700 24px system-ui;fill:#fff">${at + 1}</text>
    <path d="M48 24h44m-11-9l12 9-12 9" fill="none" stroke="${colour}" stroke-width="4"/></svg>`);
});
"""


def annotate(chromium: str, report: str, target: Path) -> None:
    """`report`: the page. Raises SystemExit: a section that docs/report.md explains is missing in it."""
    if missing := [name for name in SECTIONS if f">{name}</h2>" not in report]:
        raise SystemExit(f"pictures: the report has no section {', '.join(missing)}")
    page = report.replace('http-equiv="Content-Security-Policy"', "")  # the report itself runs no scripts
    page = page.replace("</body>", f"<script>{DRAW.replace('POINTS', json.dumps(PARTS + SECTIONS))}</script></body>")
    picture = photograph(chromium, page, WIDTH, HEIGHT)
    empty = Image.new("RGB", picture.size, picture.getpixel((0, HEIGHT - 1)))
    _, _, _, bottom = ImageChops.difference(picture, empty).getbbox() or (0, 0, 0, HEIGHT)
    picture.crop((0, 0, WIDTH, min(bottom + 16, HEIGHT))).quantize(64).save(target, optimize=True)


def photograph(chromium: str, page: str, width: int, height: int) -> Image.Image:
    """The top of a page. Raises CalledProcessError: chromium failed."""
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "report.html", Path(folder) / "report.png"
        source.write_text(page)
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        subprocess.run([*command, f"--screenshot={shot}", source.as_uri()], check=True, capture_output=True)
        return Image.open(shot).convert("RGB")
