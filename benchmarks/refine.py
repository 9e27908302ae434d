"""Time and memory of `must refine` after its forward pass: neighbours, propagation, the memory, what answers measure.

    python benchmarks/refine.py [--images 100000] [--classes 10] [--device cpu]

Vectors are random around one centre per class. The plain alternative uses numpy, a block of rows at a time, on the
first 10,000 images.
"""

import argparse
import resource
import time

import numpy as np
import torch

from must.answers.answers_file import OPEN
from must.memory.features import Pool
from must.memory.measure import Answers
from must.memory.refine import refine_pool
from must.model.memory import NEIGHBOURS, Whitening, find_nearest

PLAIN = 10_000  # images for the plain alternative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(options.classes, (options.images,), generator=generator)
    centres = torch.randn(options.classes, 256, generator=generator)
    vectors = centres[truth] + 2 * torch.randn(options.images, 256, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=1).half()
    probabilities = torch.rand(options.images, options.classes, generator=generator).softmax(1).half()
    parts = (Whitening(torch.zeros(1, 128).half(), torch.zeros(128)) for _ in range(2))
    numbers = torch.arange(options.images)
    pool = Pool(numbers, [""] * options.images, vectors, probabilities, probabilities[None][:0], *parts)
    said, answered = np.full(options.images, OPEN), torch.randperm(options.images, generator=generator)[:200].numpy()
    said[answered] = truth.numpy()[answered]
    device = torch.device(options.device)
    began = time.perf_counter()
    values = vectors.to(device).float()
    find_nearest(values)
    lap = time.perf_counter()
    count = len(pool.numbers)
    known = Answers(said, said != OPEN, np.ones(count, bool), np.arange(count, dtype=np.uint64))
    refined = refine_pool(pool, known, device, 10_000, 0.05)
    if options.device != "cpu":
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ended = time.perf_counter()
    print(f"{options.images:,} images, {options.classes} classes, {options.device}: neighbours {lap - began:.1f} s, ")
    print(f"all of refine after the pass, with 200 random answers: {ended - lap:.1f} s, peak memory {memory:.2f} GB")
    print(refined.measured.accepted.text() if refined.measured else "")
    subset = values[:PLAIN].cpu()
    began = time.perf_counter()
    plain(subset.numpy())
    lap = time.perf_counter()
    find_nearest(subset)
    print(f"neighbours of {len(subset):,}: {(lap - began) / (time.perf_counter() - lap):.1f} times as fast as numpy")


def plain(values: np.ndarray, rows: int = 1024) -> None:
    for start in range(0, len(values), rows):
        similar = values[start : start + rows] @ values.T
        best = np.argpartition(-similar, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
        np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1)


if __name__ == "__main__":
    main()
