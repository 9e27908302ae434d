"""Time and memory of `must refine` after its forward passes: whitening, neighbours, answers, propagation.

    python benchmarks/refine.py [--images 100000] [--classes 10] [--device cpu]

Features are random around one centre per class. The plain alternative uses numpy, a block of rows at a time, on the
first 10,000 images.
"""

import argparse
import resource
import time

import numpy as np
import torch
from must.method.select.propagate import NEIGHBOURS, corrected, nearest, propagate, whitened

PLAIN = 10_000  # images for the plain alternative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(options.classes, (options.images,), generator=generator)
    features = torch.randn(options.classes, 512, generator=generator)[truth]
    features = (features + 2 * torch.randn(features.shape, generator=generator)).half().to(options.device)
    probabilities = torch.rand(options.images, options.classes, generator=generator).softmax(1).to(options.device)
    answered = torch.randperm(options.images, generator=generator)[:200].to(options.device)
    began = time.perf_counter()
    values = whitened(features)
    neighbours, cosines = nearest(values)
    lap = time.perf_counter()
    labels = truth.to(options.device)[answered]
    propagate(neighbours, cosines, corrected(probabilities, values, answered, labels), answered, labels)
    if options.device != "cpu":
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ended = time.perf_counter()
    print(f"{options.images:,} images, {options.classes} classes, {options.device}: neighbours {lap - began:.1f} s, ")
    print(f"answers and propagation {ended - lap:.1f} s, peak memory {memory:.2f} GB")
    subset = values[:PLAIN].cpu()
    began = time.perf_counter()
    plain(subset.numpy())
    lap = time.perf_counter()
    nearest(subset)
    print(f"neighbours of {len(subset):,}: {(lap - began) / (time.perf_counter() - lap):.1f} times as fast as numpy")


def plain(values: np.ndarray, rows: int = 1024) -> None:
    for start in range(0, len(values), rows):
        similar = values[start : start + rows] @ values.T
        best = np.argpartition(-similar, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
        np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1)


if __name__ == "__main__":
    main()
