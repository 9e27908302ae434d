"""Time to the first batch of a run that goes on at 90% of an epoch, against one that starts at 0%.

    python benchmarks/resume.py [--images 4000] [--workers 2] [--folder DIR]

Each measurement is a process of its own, from opening the shards to the first batch of 64 (imports not counted); the
middle one of --repeat counts. "skip" is what a loader without random access does: it makes the used batches again and
throws them away. The last lines are the order alone, for ten million images in 10,000 shards.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

from shard import make_images

from must.config import ShardConfig
from must.data.augment.draws import ViewSettings
from must.data.loading.loader import TrainDataset, make_views, train_batches
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import ShardReader
from must.data.shards.build import shard

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", default="/tmp/must-benchmark-resume")
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    images, shards = Path(args.folder) / f"images-{args.images}", Path(args.folder) / f"shards-{args.images}"
    if args.way:
        print(WAYS[args.way](shards, args.workers))
        return
    make_images(images, args.images)
    shard(ShardConfig(source=str(images), output=str(shards), samples_per_shard=100))
    print(f"{'':<34}{'s to the first batch':>22}")
    middle = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        times = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(1 if way.startswith("skip") else args.repeat)
        ]
        middle[way] = statistics.median(times)
        print(f"{way:<34}{middle[way]:>22.3f}")
    print(f"resuming at 90%: {middle['must, at 90%'] / middle['must, at 0%']:.2f} of the time of starting")


def first_batch(shards: Path, workers: int, share: float, skip: bool = False) -> float:
    began = time.perf_counter()
    reader = ShardReader(str(shards), "train")
    steps = len(GlobalBatches(reader.sizes, BATCH, 1, 0))
    step = int(share * steps)
    order = GlobalBatches(reader.sizes, BATCH, 1, 0, first_step=0 if skip else step)
    batches = train_batches(TrainDataset(reader, make_views(ViewSettings()), 0), order, workers)
    next(itertools.islice(batches, step, None) if skip else batches)
    return time.perf_counter() - began


def order_alone(share: float) -> float:
    began = time.perf_counter()
    sizes = [1000] * 10_000
    steps = len(GlobalBatches(sizes, 1024, 1, 0))
    next(iter(GlobalBatches(sizes, 1024, 1, 0, first_step=int(share * steps))))
    return time.perf_counter() - began


WAYS = {
    "must, at 0%": lambda shards, workers: first_batch(shards, workers, 0),
    "must, at 90%": lambda shards, workers: first_batch(shards, workers, 0.9),
    "skip to 90%": lambda shards, workers: first_batch(shards, workers, 0.9, skip=True),
    "order of 10 million, at 0%": lambda shards, workers: order_alone(0),
    "order of 10 million, at 90%": lambda shards, workers: order_alone(0.9),
}

if __name__ == "__main__":
    main()
