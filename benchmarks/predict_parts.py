"""Labels a folder of shards with one process and with two, compared with plain onnxruntime on decoded images.

    python benchmarks/predict_parts.py --model onnx/ --shards shards/ [--split train] [--runs 3]

Each variant runs --runs times, interleaved; images a second are the median [slowest, fastest], and the ratio is that of
the medians. Plain onnxruntime has the pixels in memory and one thread per core, and does not read, decode or write:
the upper limit for the others. `must predict` runs as a user starts it: its time includes Python's start, imports and
the model's loading. With several parts each process has one thread and one worker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from must.base.processes import cores
from must.data.format.index import load_index
from must.data.format.samples import load_offsets, local_shard
from must.data.image.preprocess import Preprocess
from must.deploy.predict.session import OnnxClassifier, model_uri
from must.deploy.predict.shards import decode_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    classifier = OnnxClassifier(Path(model_uri(options.model)))
    began = time.perf_counter()
    pixels = decode_split(options, classifier.preprocess)
    print(f"{len(pixels)} images, {cores()} cores, load before: {os.getloadavg()[0]:.1f}")
    print(f"decoding alone, one process: {len(pixels) / (time.perf_counter() - began):.0f} images/s")

    def plain() -> None:
        for start in range(0, len(pixels), options.batch_size):
            classifier(pixels[start : start + options.batch_size])

    variants: dict[str, Callable[[], None]] = {
        "plain onnxruntime, decoded images": plain,
        "must predict, 1 part": lambda: label(options, ["1/1"], cores(), 0),
        "must predict, 2 parts": lambda: label(options, ["1/2", "2/2"], 1, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.runs):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    best = statistics.median(seconds["plain onnxruntime, decoded images"])
    for name, times in seconds.items():
        middle, speeds = statistics.median(times), [len(pixels) / duration for duration in times]
        rate = f"{len(pixels) / middle:8.0f} images/s [{min(speeds):.0f}, {max(speeds):.0f}]"
        print(f"{name:<36}{middle:7.2f} s{rate:>34}  {best / middle:5.2f} x plain")
    print(f"load after: {os.getloadavg()[0]:.1f}")


def decode_split(options: argparse.Namespace, preprocess: Preprocess) -> np.ndarray:
    """uint8 [N, S, S, 3]: all images of the split that can be decoded."""
    index, pixels = load_index(options.shards), []
    for shard in index.list_shards(options.split):
        with local_shard(options.shards, shard) as path:
            rows = decode_rows(path, load_offsets(options.shards, shard), preprocess, index.max_pixels)
        pixels += [row.pixels for row in rows if row.pixels is not None]
    return np.stack(pixels)


def label(options: argparse.Namespace, parts: list[str], workers: int, threads: int) -> None:
    """Runs a process for each part at the same time, into a temporary folder."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "must", "predict", "--model", options.model, "--shards", options.shards]
        command += ["--split", options.split, "--output", output, "--batch-size", str(options.batch_size)]
        command += ["--workers", str(workers), "--threads", str(threads)]
        programs = [subprocess.Popen([*command, "--part", part], stdout=subprocess.DEVNULL) for part in parts]
        assert [program.wait() for program in programs] == [0] * len(parts)


if __name__ == "__main__":
    main()
