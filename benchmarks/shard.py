"""How fast `must shard` is, against `tar cf`, `webdataset.ShardWriter` and decoding alone, on the same files.

    python benchmarks/shard.py [--images 20000] [--folder DIR]

The files are 500x400 JPEGs whose noise has the spectrum of photographs (amplitude falls as 1 / frequency). They are
read once before anything is measured, so all variants read them from memory. Every variant runs in its own process; the
variants take turns, and the best of --repeat runs counts. Peak memory is the sum over the run's processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folder", default="/tmp/must-benchmark-shard")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    images, output = Path(args.folder) / f"images-{args.images}", Path(args.folder) / "output"
    if args.worker:
        WAYS[args.worker](images, output)
        return
    size = make_images(images, args.images)
    print(f"{args.images} JPEGs, {size / 1e6:.0f} MB, {size / args.images / 1e3:.0f} kB each; {os.cpu_count()} cores")
    best: dict[str, Measure] = {}
    for _ in range(args.repeat):
        for way in WAYS:
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            current = measure([sys.executable, __file__, *sys.argv[1:], "--worker", way])
            best[way] = min(current, best.get(way, current))
    shutil.rmtree(output, ignore_errors=True)
    print(f"{'':<32}{'s':>8}{'images/s':>10}{'MB/s':>8}{'CPU s':>8}{'peak MB':>9}")
    for way, (seconds, cpu, memory) in best.items():
        rates = f"{args.images / seconds:>10.0f}{size / seconds / 1e6:>8.0f}"
        print(f"{way:<32}{seconds:>8.2f}{rates}{cpu:>8.1f}{memory / 1e6:>9.0f}")

    for name, other in RATIOS:
        print(f"{best[other].seconds / best['must shard'].seconds:.2f} of the speed of {name}")


class Measure(NamedTuple):
    seconds: float  # on the wall
    cpu: float  # seconds, of all its processes
    peak: int  # bytes, of all its processes


def make_images(folder: Path, count: int) -> int:
    """Creates missing images and reads all once; returns the total size in bytes."""
    missing = [number for number in range(count) if not path_of(folder, number).exists()]
    if missing:
        print(f"making {len(missing)} images", flush=True)
        for part in range(-(-count // 1000)):
            (folder / f"{part:03d}").mkdir(parents=True, exist_ok=True)
        with multiprocessing.Pool() as pool:
            pool.starmap(make_image, [(folder, number) for number in missing], chunksize=100)
    return sum(len(path_of(folder, number).read_bytes()) for number in range(count))


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"


def make_image(folder: Path, number: int) -> None:
    random = np.random.default_rng(number)
    planes = []
    for contrast in (50, 15, 15):  # brightness varies more than colour
        plane = sum(crop(random) for _ in range(2)) / np.sqrt(2)
        planes.append(Image.fromarray(np.clip(128 + contrast * plane, 0, 255).astype(np.uint8)))
    Image.merge("YCbCr", planes).save(path_of(folder, number), "JPEG", quality=90)


def crop(random: np.random.Generator) -> np.ndarray:
    field = noise(int(random.integers(4)))
    y, x = random.integers(field.shape[0] - 400), random.integers(field.shape[1] - 500)
    return field[y : y + 400, x : x + 500]


@lru_cache(maxsize=4)
def noise(seed: int) -> np.ndarray:
    """Standardised noise [1200, 1500] whose amplitude falls as 1 / frequency."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(1200)[:, None], np.fft.rfftfreq(1500)[None])
    phase = np.exp(2j * np.pi * random.random(frequency.shape))
    field = np.fft.irfft2(phase / np.maximum(frequency, 1 / 1500), (1200, 1500))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def tar_and_sync(images: Path, output: Path) -> None:
    output.mkdir(parents=True)
    subprocess.run(["tar", "cf", str(output / "all.tar"), "-C", str(images), "."], check=True)
    with (output / "all.tar").open("rb") as file:
        os.fsync(file.fileno())


def shard_writer(images: Path, output: Path) -> None:
    import json

    import webdataset

    output.mkdir(parents=True)
    with webdataset.ShardWriter(str(output / "train-%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, path in enumerate(sorted(images.rglob("*.jpg"))):
            sample = {"__key__": f"{number:08d}", "jpg": path.read_bytes(), "json": json.dumps({"source": path.name})}
            writer.write(sample)


def must_shard(images: Path, output: Path) -> None:
    from must.config import ShardConfig
    from must.data.shards.build import shard

    shard(ShardConfig(source=str(images), output=str(output)))


def decode_alone(images: Path, output: Path) -> None:
    with multiprocessing.Pool() as pool:
        pool.map(decode_file, sorted(images.rglob("*.jpg")), chunksize=100)


def decode_file(path: Path) -> None:
    Image.open(path).load()


def check_alone(images: Path, output: Path) -> None:
    with multiprocessing.Pool() as pool:
        pool.map(check_file, sorted(images.rglob("*.jpg")), chunksize=100)


def check_file(path: Path) -> None:
    """The check of `must shard`: decodes all data of the file, at an eighth of its size."""
    from must.data.image.decode import check, identify

    check(identify(path.read_bytes()))


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "tar cf, synced to disk": tar_and_sync,
    "webdataset.ShardWriter": shard_writer,
    "decoding alone": decode_alone,
    "decoding alone, reduced": check_alone,
    "must shard": must_shard,
}

RATIOS = (
    ("tar that syncs to disk, as must shard does", "tar cf, synced to disk"),
    ("webdataset.ShardWriter, which decodes nothing", "webdataset.ShardWriter"),
    ("decoding alone on all cores", "decoding alone"),
    ("decoding alone in the same reduced way", "decoding alone, reduced"),
)


def measure(command: list[str]) -> Measure:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, ended = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, ended), daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watcher.join()
    assert process.returncode == 0, command
    return Measure(seconds, usage.ru_utime + usage.ru_stime, peak[0])


def watch(process: int, peak: list[int], ended: threading.Event) -> None:
    """Sums the proportional set sizes, which count shared memory once."""
    while not ended.wait(0.3):
        peak[0] = max(peak[0], sum(measure_memory(number) for number in family(process)))


def family(parent: int) -> list[int]:
    processes = [parent]
    for number in processes:
        try:
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        except OSError:
            continue
        processes += [int(child) for child in children]
    return processes


def measure_memory(number: int) -> int:
    try:
        for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
