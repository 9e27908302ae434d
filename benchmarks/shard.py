"""How fast `must shard` is, against `tar cf`, `webdataset.ShardWriter` and decoding alone, on the same files.

    python benchmarks/shard.py [--images 20000] [--folder DIR]

The files are 500x400 JPEGs whose noise has the spectrum of photographs (amplitude falls as 1 / frequency). They are
read once before anything is measured, so all ways read them from memory. Every way runs in a process of its own; the
ways take turns, and the best of --repeat runs counts. Peak memory is the sum over the run's processes.
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
from pathlib import Path

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
    best: dict[str, tuple[float, float]] = {}
    for _ in range(args.repeat):
        for way in WAYS:
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            seconds, memory = measured([sys.executable, __file__, *sys.argv[1:], "--worker", way])
            if way not in best or seconds < best[way][0]:
                best[way] = seconds, memory
    shutil.rmtree(output, ignore_errors=True)
    print(f"{'':<32}{'s':>8}{'images/s':>10}{'MB/s':>8}{'peak MB':>9}")
    for way, (seconds, memory) in best.items():
        print(f"{way:<32}{seconds:>8.2f}{args.images / seconds:>10.0f}{size / seconds / 1e6:>8.0f}{memory / 1e6:>9.0f}")
    ratio = {way: seconds for way, (seconds, _) in best.items()}
    print(f"header check against tar:            {ratio['tar cf'] / ratio['must shard, header']:.2f} of its speed")
    print(
        f"decode check against decoding alone: {ratio['decoding alone'] / ratio['must shard, decode']:.2f} of its speed"
    )
    print(f"header check against ShardWriter:    {ratio['webdataset.ShardWriter'] / ratio['must shard, header']:.2f}x")


def make_images(folder: Path, count: int) -> int:
    """Makes what is missing and reads everything once; the bytes of all files."""
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
    frequency = np.hypot(np.fft.fftfreq(400)[:, None], np.fft.rfftfreq(500)[None])
    amplitude = 1 / np.maximum(frequency, 1 / 500)
    planes = []
    for weight in (1.0, 0.3, 0.3):  # brightness varies more than colour
        phase = np.exp(2j * np.pi * random.random(amplitude.shape, dtype=np.float32))
        plane = np.fft.irfft2(amplitude * phase, (400, 500))
        planes.append(np.clip(128 + 50 * weight * plane / plane.std(), 0, 255).astype(np.uint8))
    picture = Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes])
    picture.save(path_of(folder, number), "JPEG", quality=90)


def tar(images: Path, output: Path) -> None:
    output.mkdir(parents=True)
    subprocess.run(["tar", "cf", str(output / "all.tar"), "-C", str(images), "."], check=True)


def tar_and_sync(images: Path, output: Path) -> None:
    tar(images, output)
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


def must_shard(check: str) -> Callable[[Path, Path], None]:
    def run(images: Path, output: Path) -> None:
        from must.config import ShardConfig
        from must.data.shard import shard

        shard(ShardConfig(source=str(images), output=str(output), check=check))

    return run


def decode_alone(images: Path, output: Path) -> None:
    with multiprocessing.Pool() as pool:
        pool.map(decode_file, sorted(images.rglob("*.jpg")), chunksize=100)


def decode_file(path: Path) -> None:
    Image.open(path).load()


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "tar cf": tar,
    "tar cf, synced to disk": tar_and_sync,
    "must shard, header": must_shard("header"),
    "webdataset.ShardWriter": shard_writer,
    "decoding alone": decode_alone,
    "must shard, decode": must_shard("decode"),
}


def measured(command: list[str]) -> tuple[float, float]:
    """Wall-clock seconds of a process and the peak of the bytes that it and its children hold."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
        watcher.start()
        code = process.wait()
    seconds = time.perf_counter() - began
    watcher.join()
    assert code == 0, command
    return seconds, peak[0]


def watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Adds up the proportional set sizes, in which memory that processes share counts once."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(memory_of(number) for number in family(process.pid)))
        time.sleep(0.2)


def family(parent: int) -> list[int]:
    found = [parent]
    for number in found:
        try:
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        except OSError:
            continue
        found += [int(child) for child in children]
    return found


def memory_of(number: int) -> int:
    try:
        for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
