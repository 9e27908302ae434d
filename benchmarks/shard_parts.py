"""Shards one folder with 1, 2 and 4 processes that share the work (`must shard --part`), each with one worker.

    python benchmarks/shard_parts.py [--images 8000] [--runs 3] [--validate header]

The files are those of benchmarks/shard.py. The processes of a variant start at the same time and as a user starts them:
their time includes Python's start, each part's listing, and the last part's merge. Variants take turns; images/s are
the median of --runs [slowest, fastest], ratios are of medians. "2 workers" is one process without parts. Each run
checks that the output is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from shard import make_images

from must.base.processes import cores

VARIANTS = {
    "1 part, 1 worker": (["1/1"], 1),
    "2 parts at once": (["1/2", "2/2"], 1),
    "4 parts at once": (["1/4", "2/4", "3/4", "4/4"], 1),
    "no parts, 2 workers": (["1/1"], 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--validate", choices=("decode", "header"), default="decode")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/must-benchmark-shard"))
    options = parser.parse_args()
    images, output = options.folder / f"images-{options.images}", options.folder / "parts"
    size = make_images(images, options.images)
    print(f"{options.images} JPEGs, {size / 1e6:.0f} MB; {cores()} cores, load before: {os.getloadavg()[0]:.1f}")
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    checksums = set()
    for _ in range(options.runs):
        for name, (parts, workers) in VARIANTS.items():
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            command = [sys.executable, "-m", "must", "shard", "--source", str(images), "--output", str(output)]
            command += ["--validate", options.validate, "--workers", str(workers), "--samples-per-shard", "500"]
            began = time.perf_counter()
            programs = [subprocess.Popen([*command, "--part", part], stdout=subprocess.DEVNULL) for part in parts]
            assert [program.wait() for program in programs] == [0] * len(parts)
            seconds[name].append(time.perf_counter() - began)
            # index.json has the checksums of all shards
            checksums.add(hashlib.sha256((output / "index.json").read_bytes()).hexdigest())
    shutil.rmtree(output)
    assert len(checksums) == 1, "the variants wrote different bytes"
    first = statistics.median(seconds["1 part, 1 worker"])
    print(f"{'':<22}{'s':>8}{'images/s':>10}{'[slowest, fastest]':>22}{'ratio':>8}")
    for name, times in seconds.items():
        middle, rates = statistics.median(times), [options.images / duration for duration in times]
        spread = f"[{min(rates):.0f}, {max(rates):.0f}]"
        print(f"{name:<22}{middle:>8.2f}{options.images / middle:>10.0f}{spread:>22}{first / middle:>8.2f}")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
