"""JPEG decoders on the same files, in one process: milliseconds per image, and the difference from Pillow's pixels.

    python benchmarks/decoders.py [--images 300] [--folder DIR]

The files are those of benchmarks/shard.py: 500x400 JPEGs with the noise spectrum of photographs. "large" is the
same scene at 2000x1600, for which decoding at reduced size is faster. CPU seconds; best of 3.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from shard import make_images
from torchvision.io import decode_jpeg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--folder", default="/tmp/must-benchmark-decoders")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(args.folder) / f"images-{args.images}"
    make_images(folder, args.images)
    files = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    large = [enlarge(data) for data in files[:40]]
    print(f"{'':<48}{'500x400':>9}{'large':>8}  pixels")
    for name, decoder in DECODERS.items():
        cells = f"{milliseconds(decoder, files):>9.2f}{milliseconds(decoder, large):>8.2f}"
        print(f"{name:<48}{cells}  {difference(decoder, files[:50])}")


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_reduced(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (280, 224))
    return np.asarray(image)


def torchvision(data: bytes) -> np.ndarray:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def as_picture(data: bytes) -> Image.Image:
    pixels = simplejpeg.decode_jpeg(data)
    return Image.frombuffer("RGB", pixels.shape[1::-1], pixels, "raw", "RGB", 0, 1)


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "Pillow": pillow,
    "Pillow, draft to no less than 280x224": pillow_reduced,
    "torchvision.io.decode_jpeg": torchvision,
    "simplejpeg": simplejpeg.decode_jpeg,
    "simplejpeg, as a Pillow image": as_picture,
}


def enlarge(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    buffer = io.BytesIO()
    image.resize((2000, 1600), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(decoder: Callable[[bytes], Any], files: list[bytes]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for data in files:
            decoder(data)
        best = min(best, (time.process_time() - began) / len(files) * 1000)
    return best


def difference(decoder: Callable[[bytes], Any], files: list[bytes]) -> str:
    largest, mean = 0, 0.0
    for data in files:
        pixels, expected = np.asarray(decoder(data)).astype(int), pillow(data)
        if pixels.shape != expected.shape:
            return "another size"
        distance = np.abs(pixels - expected)
        largest, mean = max(largest, int(distance.max())), mean + distance.mean() / len(files)
    return "equal" if not largest else f"differ by {mean:.2f}, at most {largest}"


if __name__ == "__main__":
    main()
