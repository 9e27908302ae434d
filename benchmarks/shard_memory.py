"""Memory and time of `must shard`'s bookkeeping for a generated listing.

    python benchmarks/shard_memory.py [--entries 1000000] [--folder DIR]

Listing, shuffling, cutting into chunks, searching duplicates and the tables for --append run on generated entries, each
size in its own process; images are not read. The peak of memory should hardly depend on the size.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", default="/tmp/must-benchmark-shard")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        bookkeeping(args.entries, Path(args.folder) / "listing")
        return
    print(f"{'entries':>10}{'peak MB':>9}  seconds")
    for entries in (0, args.entries // 100, args.entries // 10, args.entries):
        command = [sys.executable, __file__, "--worker", "--entries", str(entries), "--folder", args.folder]
        subprocess.run(command, check=True)


def bookkeeping(entries: int, folder: Path) -> None:
    from must.data.shards.history import find_duplicates, write_names
    from must.data.shards.listing import read_chunk, shuffle
    from must.data.sources.base import Item

    shutil.rmtree(folder, ignore_errors=True)
    times, began = {}, time.perf_counter()

    def items() -> Iterator[Item]:
        for number in range(entries):
            yield Item(f"site-{number % 977}/2024-{number % 12:02d}/camera/{number:010d}.jpg", 131072, None, None, 0)

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.perf_counter() - began, time.perf_counter()

    plan = shuffle(items(), folder / "plan", 1000)
    lap("list and shuffle")
    chunks = list(pairwise(plan.starts))
    assert sum(1 for chunk in chunks for _ in read_chunk(plan.path, *chunk)) == entries
    lap("read units")

    def hashes() -> Iterator[tuple[int, str, np.ndarray]]:
        for number in range(len(chunks)):
            yield number, "train", np.random.default_rng(number // 2 * 2).integers(0, 256, (1000, 32), np.uint8)

    if entries:
        duplicates = find_duplicates(hashes(), ("train",), folder / "duplicates", drop_all=False)
        assert duplicates.count == 1000 * (len(chunks) // 2)
        lap("duplicates")
        names = (
            np.random.default_rng(chunk).integers(0, 2**63, (1000, 2)).astype(np.uint64) for chunk in range(len(chunks))
        )
        write_names(names, str(folder / "names.npy"), folder / "names")
        lap("names")
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{entries:>10}{peak:>9.0f}  " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in times.items()))


if __name__ == "__main__":
    main()
