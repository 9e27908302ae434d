"""Makes the pictures in docs/pictures from a finished demo: `make pictures`.

The picture of the report is a screenshot by chromium (--chromium: another browser); the others are drawn here.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from docs.pictures_dag import dag
from must.data.loader import EpochOrder

INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
SERIES = ("#0b63ce", "#b54708", "#0b7a4b", "#7a3fa8")
LIMIT = 150_000  # bytes of a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of `make demo`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome") or "")
    options = parser.parse_args()
    details = options.demo / "work" / "report"
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    (output / "order.svg").write_text(order())
    (output / "pipeline.svg").write_text(dag())
    if options.chromium:
        report = (details / "report.html").read_text().replace(str(options.demo.resolve()), "demo")
        photograph(options.chromium, report, 1000, 1000).quantize(96).save(output / "report.png", optimize=True)
    else:
        print("pictures: that of the report is left as it was: no chromium here", file=sys.stderr)
    for file in sorted({*output.iterdir()} - {output / "quickstart.webp"}):
        print(f"{file}: {file.stat().st_size:,} bytes")
        if file.stat().st_size > LIMIT:
            raise SystemExit(f"pictures: {file} is larger than {LIMIT:,} bytes")


def photograph(chromium: str, page: str, width: int, height: int) -> Image.Image:
    """The top of a page. Raises CalledProcessError: chromium failed."""
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "report.html", Path(folder) / "report.png"
        source.write_text(page)
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        subprocess.run([*command, f"--screenshot={shot}", source.as_uri()], check=True, capture_output=True)
        return Image.open(shot).convert("RGB")


def order(shards: int = 24, images: int = 48, window: int = 6, processes: int = 4, batch: int = 64) -> str:
    """The order of an epoch: one dot per sample, its position in the shards over the time of its use."""
    samples = EpochOrder([images] * shards, seed=0, epoch=0, window=window).take(0, shards * images)
    x0, top, width, height = 70, 54, 780, 330
    total = shards * images
    lines = [text(20, 24, "One epoch: when each image is used, and where it lies", INK, 15, weight="bold")]
    for shard in range(0, shards + 1, window):
        y = top + height * shard / shards
        lines.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="{PALE}"/>')
        lines.append(text(x0 - 8, y + 4, f"shard {shard}" if shard < shards else "", GREY, 11, "end"))
    for process in range(processes):
        of_process = [i for i in range(total) if i % batch * processes // batch == process]
        path = "".join(f"M{x0 + width * i / total:.1f} {top + height * samples[i] / total:.1f}h0" for i in of_process)
        lines.append(
            f'<path d="{path}" stroke="{SERIES[process]}" stroke-width="3.4" stroke-linecap="round" fill="none"/>'
        )
        lines.append(text(x0 + 330 + process * 112, top + height + 28, f"● process {process}", SERIES[process], 12))
    lines.append(text(x0, top + height + 28, f"steps 1 to {total // batch}, {batch} images each", GREY, 12))
    return page(870, 430, lines)


def page(width: int, height: int, body: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif"><rect width="{width}" height="{height}" fill="#fff"/>{"".join(body)}'
        "</svg>\n"
    )


def text(x: float, y: float, words: str, colour: str, size: int, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    main()
