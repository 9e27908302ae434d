"""Measures the cost of the limits on images, and the most expensive images within the limits.

    python benchmarks/bounds.py throughput [--images 1500] [--rounds 5]
    python benchmarks/bounds.py costliest [NAME ...] [--first 20]

`throughput`: `must shard` of JPEGs of 500 x 375 with and without the deadline and the memory limit, in turns: images
per second of CPU time and of wall time. `costliest`: the images with the longest CPU time, of all in image_cost.py and
some that are worse for their size, each decoded in its own process.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import must
from benchmarks import image_cost
from must.data.shards import chunk
from tests.data.image import hostile


def noise(side: int, kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return image_cost.encode(Image.fromarray(pixels), kind, **options)


WORSE = {
    "JPEG of noise, progressive, 30 MP": lambda: noise(5500, "JPEG", progressive=True, quality=95),
    "JPEG of 150,000 segments": lambda: image_cost.segments(0xE0, b"", 150_000),
    "PNG of noise, 20 MP": lambda: noise(4500, "PNG", compress_level=1),
    "WebP of noise, lossless, 12 MP": lambda: noise(3500, "WEBP", lossless=True, method=0, quality=0),
    "AVIF of noise, 9 MP": lambda: noise(3000, "AVIF", speed=10),
    "AVIF of noise, 25 MP": lambda: noise(5000, "AVIF", speed=10),
    "JPEG 2000 of noise, 9 MP": lambda: noise(3000, "JPEG2000"),
    "JPEG 2000 of empty passes, 4 MP": lambda: hostile.passes(2048, 1),
    "JPEG 2000 of empty passes, 9 MP": lambda: hostile.passes(3072, 1),
    "TIFF LZW of noise, 20 MP": lambda: noise(4500, "TIFF", compression="tiff_lzw"),
    "BigTIFF of 3 x 90,000 entries": lambda: hostile.directories(90_000),
    "GIF of noise, 20 MP": lambda: image_cost.encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (4500, 4500), np.uint8), "P"), "GIF"
    ),
}


def throughput(images: int, rounds: int) -> None:
    spent: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        generator = np.random.default_rng(0)
        for number in range(images):
            soft = Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375))
            soft.save(source / f"{number:05d}.jpg", quality=90)
        for number in range(2 * rounds):
            bounded = number % 2 == 0
            unlimited = (
                mock.patch.object(chunk, "deadline", lambda *_: nullcontext()),
                mock.patch.object(chunk, "limit_memory", lambda *_: None),
            )
            with nullcontext() if bounded else unlimited[0], nullcontext() if bounded else unlimited[1]:
                before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                must.shard(source=str(source), output=str(Path(folder, "out")), workers=1)
                after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
            spent[bounded].append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds))
            shutil.rmtree(Path(folder, "out"))
    print("| | images a second of the processor | on the clock |\n|---|--:|--:|")
    rates = {}
    for bounded, name in ((False, "without"), (True, "with")):
        rates[bounded] = [images / statistics.median(column) for column in zip(*spent[bounded], strict=True)]
        print(f"| {name} | {rates[bounded][0]:.0f} | {rates[bounded][1]:.0f} |")
    ratios = [bounded / unbounded for bounded, unbounded in zip(rates[True], rates[False], strict=True)]
    print(f"| ratio | {ratios[0]:.3f} | {ratios[1]:.3f} |")


def costliest(first: int, words: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        for name, make in (image_cost.CASES | WORSE).items():
            if words and not any(word in name for word in words):
                continue
            path.write_bytes(make())
            if (cost := image_cost.measure(path, "decode"))["accepted"]:
                rows.append(
                    (cost["cpu"], cost["peak"] / 1e6, cost["seconds"], cost["memory"] / 1e6, path.stat().st_size, name)
                )
    print("| picture | bytes | MB estimated | MB | s estimated | s |\n|---|--:|--:|--:|--:|--:|")
    for cpu, peak, seconds, memory, size, name in sorted(rows, reverse=True)[:first]:
        print(f"| {name} | {size} | {memory:.0f} | {peak:.0f} | {seconds:.2f} | {cpu:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "costliest"])
    parser.add_argument("words", nargs="*", help="of the costliest: pictures whose name holds one of these")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=20)
    options = parser.parse_args()
    if options.what == "throughput":
        throughput(options.images, options.rounds)
    else:
        costliest(options.first, options.words)


if __name__ == "__main__":
    main()
