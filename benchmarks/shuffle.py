"""How well --shuffle-window mixes shards whose images are sorted by class, partly sorted, or in random order.

    python benchmarks/shuffle.py [--classes 1000] [--samples 1280000] [--samples-per-shard 1000] [--batch 1024]

For each window, over the batches of an epoch:

    chi2    mean over the batches of  sum over classes (n - e)^2 / e / (classes - 1),  e = batch / classes: 1 for
            batches drawn at random (multinomial; a little below for drawing without replacement)
    TV      mean total variation distance between a batch's classes and the split's, over that of random batches
    classes mean number of different classes in a batch, over that of random batches
    drift   TV of the classes of 10 batches in a row, over that of random ones: what averaging does not remove

The numbers depend on the number of shards per class and of images per batch, not on the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from must.data.loader import GlobalBatches

WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--bytes", type=int, default=128_000, help="of an image, for the window's size")
    args = parser.parse_args()
    sizes = [args.samples_per_shard] * (args.samples // args.samples_per_shard)
    samples = sum(sizes)
    in_order = np.arange(samples) * args.classes // samples
    random = np.random.default_rng(0)
    mixed, is_new = random.permutation(in_order), in_order >= 0.9 * args.classes
    appended = np.concatenate([random.permutation(in_order[~is_new]), random.permutation(in_order[is_new])])
    ideal = mixing(mixed, sizes, args.batch, len(sizes))
    for name, labels in (
        ("in class order, as others may have written them", in_order),
        ("a tenth of the classes in shards of their own, as --append writes them", appended),
        ("in random order, as `must shard` writes them", mixed),
    ):
        print(
            f"{len(sizes)} shards of {args.samples_per_shard}, {args.classes} classes, batches of {args.batch}; {name}"
        )
        print(f"{'window':>8}{'GB':>9}{'chi2':>9}{'TV':>8}{'classes':>9}{'drift':>8}")
        for window in [*(window for window in WINDOWS if window < len(sizes)), len(sizes)]:
            size = window * args.samples_per_shard * args.bytes / 1e9
            print(f"{window:>8}{size:>9.2f}{row(mixing(labels, sizes, args.batch, window), ideal)}")


def row(values: np.ndarray, ideal: np.ndarray) -> str:
    chi2, tv, classes, drift = values / np.array([1.0, *ideal[1:]])
    return f"{chi2:>9.2f}{tv:>8.2f}{classes:>9.2f}{drift:>8.2f}"


def mixing(labels: np.ndarray, sizes: list[int], batch: int, window: int) -> np.ndarray:
    """chi2, TV, different classes of a batch, and TV of 10 batches: means over an epoch."""
    histograms = np.stack(list(batches(labels, sizes, batch, window)))
    expected = np.bincount(labels) / len(labels)
    chi2 = ((histograms - batch * expected) ** 2 / (batch * expected)).sum(1) / (len(expected) - 1)
    tens = histograms[: len(histograms) // 10 * 10].reshape(-1, 10, len(expected)).sum(1)
    return np.array(
        [chi2.mean(), distance(histograms, expected), (histograms > 0).sum(1).mean(), distance(tens, expected)]
    )


def distance(histograms: np.ndarray, expected: np.ndarray) -> float:
    shares = histograms / histograms.sum(1, keepdims=True)
    return float(np.abs(shares - expected).sum(1).mean() / 2)


def batches(labels: np.ndarray, sizes: list[int], batch: int, window: int) -> Iterator[np.ndarray]:
    for step in GlobalBatches(sizes, batch, 1, 0, window=window):
        yield np.bincount(labels[[sample for _, sample in step]], minlength=labels.max() + 1)


if __name__ == "__main__":
    main()
