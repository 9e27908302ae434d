"""Two training views at 224 px: MUST's loader against ImageFolder and the same transforms in torch's DataLoader.

    python benchmarks/stream.py [--images 1500] [--workers 1] [--folder DIR]

The files are those of benchmarks/shard.py: 500x400 JPEGs with the noise spectrum of photographs. Every way makes the
same batches of two views and a mask with the same number of loader processes, in its own process; they take turns, and
the best of --repeat runs counts. "a core" divides by the CPU seconds of all processes, including the main one, so that
it applies to machines with more cores and depends little on other load.

"plain" is the published code: torchvision's ImageFolder, torchvision's and timm's transforms, a float tensor for each
view. The second table has the time of each operation per image, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shard import make_images
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from must.config import ShardConfig, TrainConfig
from must.data.augment import AugmentParams, PatchMask, TrainViews, fill_color, posterize, seed_views
from must.data.image.decode import decode
from must.data.image.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from must.data.loader import GlobalBatches, TrainDataset, train_batches
from must.data.reader import ShardReader
from must.data.shards.build import shard

SIZE, BATCH = 224, 64
CONFIG = TrainConfig(shards="", classifier="", output="")
SETTINGS = CONFIG, Preprocess(), 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", default="/tmp/must-benchmark-stream")
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    images, shards = Path(args.folder) / f"images-{args.images}", Path(args.folder) / f"shards-{args.images}"
    torch.set_num_threads(1)
    if args.way:
        loader = plain(images, args.workers) if args.way == "plain" else must_loader(shards, args.workers)
        print(json.dumps(consume(loader)))
        return
    make_images(images, args.images)
    shard(ShardConfig(source=str(images), output=str(shards)))
    print(f"{args.images} images, {args.workers} loader process(es), {os.cpu_count()} cores")
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.repeat):
        for way in ("plain", "must"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            speed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if way not in best or speed["a core"] > best[way]["a core"]:
                best[way] = speed
    print(f"{'':<28}{'images/s':>10}{'a core':>8}{'ms CPU an image':>17}{'ratio a core':>14}")
    for way, speed in best.items():
        ratio, cpu = speed["a core"] / best["plain"]["a core"], 1000 / speed["a core"]
        print(f"{NAMES[way]:<28}{speed['images/s']:>10.0f}{speed['a core']:>8.0f}{cpu:>17.2f}{ratio:>14.2f}")
    breakdown(images)


NAMES = {
    "plain": "ImageFolder + DataLoader",
    "must": "must",
}


def consume(loader: Iterable[Any]) -> dict[str, float]:
    """Images per second from the second batch on, and per CPU second of this process and its children."""
    batches = iter(loader)
    next(batches)
    began, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch[0])
    seconds = time.perf_counter() - began
    del batches  # ends the loader processes, so that their CPU times are counted
    usage = [resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage) - START
    return {"images/s": images / seconds, "a core": (images + BATCH) / cpu}


def cpu_now() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class TwoViews:
    """The published transforms: float tensors [3, 224, 224], and the mask."""

    def __init__(self) -> None:
        bicubic, fill = transforms.InterpolationMode.BICUBIC, fill_color(CLIP_MEAN)
        hparams = {"translate_const": int(SIZE * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        to_input = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
        self.weak = transforms.Compose([transforms.Resize(SIZE, bicubic), transforms.RandomCrop(SIZE), *to_input])
        self.strong = transforms.Compose(
            [
                RandomResizedCropAndInterpolation(SIZE, (0.3, 1.0), interpolation="bicubic"),
                transforms.RandomHorizontalFlip(),
                rand_augment_transform("rand-m9-mstd0.5-inc1", hparams),
                *to_input,
            ]
        )
        for operation in self.strong.transforms[2].ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize  # timm's fails with Pillow 13 for 0 bits
        self.mask = PatchMask(SIZE, 16, 32, 0.3)

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        return self.weak(image), self.strong(image), self.mask()


def plain(images: Path, workers: int) -> Iterable[Any]:
    loader = DataLoader(
        ImageFolder(str(images), TwoViews()), BATCH, shuffle=True, num_workers=workers, drop_last=True,
        prefetch_factor=4 if workers else None,
    )  # fmt: skip
    return (views for views, _ in loader)


def must_loader(shards: Path, workers: int) -> Iterable[Any]:
    reader = ShardReader(str(shards), "train")
    order = GlobalBatches(reader.sizes, BATCH, 1, 0)
    dataset = TrainDataset(reader, TrainViews(*SETTINGS), 0)
    return train_batches(dataset, order, workers, torch.device("cpu"))


def breakdown(images: Path) -> None:
    files = sorted(images.rglob("*.jpg"))[:300]
    data = [path.read_bytes() for path in files]
    pictures = [decode(part) for part in data]
    exact, published = TrainViews(*SETTINGS), TwoViews()
    to_input = transforms.Compose(published.weak.transforms[2:])

    def draw_exact(i: int) -> AugmentParams:
        seed_views(0, 0, i)
        return exact.draws(*pictures[i].size)

    draws = [draw_exact(i) for i in range(len(files))]
    plain_weak, plain_strong = (transforms.Compose(t.transforms[:-2]) for t in (published.weak, published.strong))
    rows: dict[str, list[Callable[[int], Any] | None]] = {
        "decode": [lambda i: Image.open(files[i]).convert("RGB"), lambda i: decode(data[i])],
        "seeds and draws": [None, draw_exact],
        "weak view": [lambda i: plain_weak(pictures[i]), lambda i: exact.weak(pictures[i], draws[i])],
        "strong view": [lambda i: plain_strong(pictures[i]), lambda i: exact.strong(pictures[i], draws[i])],
        "both to float and normalised": [
            lambda i: [to_input(pictures[i].crop((0, 0, SIZE, SIZE))) for _ in range(2)], None
        ],
    }  # fmt: skip
    print(f"\n{'ms an image, one process':<40}{'plain':>8}{'must':>8}")
    for name, functions in rows.items():
        cells = "".join(f"{milliseconds(f, len(files)):>8.2f}" if f else f"{'':>8}" for f in functions)
        print(f"{name:<40}{cells}")


def milliseconds(function: Callable[[int], Any], count: int) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for number in range(count):
            function(number)
        best = min(best, (time.process_time() - began) / count * 1000)
    return best


START = cpu_now()

if __name__ == "__main__":
    main()
