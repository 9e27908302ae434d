"""Which labels `must refine` accepts, how many of them are wrong, and how often the promise was kept.

    python benchmarks/accept.py [--draws 10] [--images 1000]

People are simulated on made-up images: vectors around a centre per class, half of the classes in pairs that are hard to
tell apart, and the probabilities of a model that is too sure. Some images are of none of the classes (junk), and some
answers are wrong. Beside it: all labels with a confidence above 0.9.
"""

import argparse
import itertools

import numpy as np
import torch

from must.method.answers.review import random_order
from must.method.memory.build import build_memory
from must.method.memory.pool import Pool
from must.method.memory.propagate import answer_rows
from must.method.memory.refine import Answers, refine_pool
from must.method.model.vectors import Whitening

RISK = 0.05
CLASSES, ANSWERS = (10, 40, 120), (20, 60, 120, 240)
CASES = {"": (0.0, 0.0), "junk": (0.2, 0.0), "5% wrong": (0.0, 0.05)}  # shares of junk, and of wrong answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--images", type=int, default=1_000)
    options = parser.parse_args()
    print(f"{'classes':>7} {'answers':>7} {'case':>9}{'right':>8}{'accepted':>10}{'wrong':>8}{'kept':>7}", end="")
    print(f"{'above 0.9':>11}{'wrong':>8}{'kept':>7}")
    for classes, answers, (name, case) in itertools.product(CLASSES, ANSWERS, CASES.items()):
        rows = np.array([simulate(options.images, classes, answers, *case, seed) for seed in range(options.draws)])
        right, *parts = rows[:, 0].mean(), rows[:, 1:3], rows[:, 3:]
        line = f"{classes:>7} {answers:>7} {name:>9}{right:>8.1%}"
        for part, width in zip(parts, (10, 11), strict=True):
            wrong = f"{np.nanmean(part[:, 1]):.1%}" if part[:, 0].any() else "-"
            line += f"{part[:, 0].mean():>{width}.1%}{wrong:>8}{np.mean(~(part[:, 1] > RISK)):>7.0%}"
        print(line, flush=True)


def simulate(images: int, classes: int, answers: int, junk: float, noise: float, seed: int) -> list[float]:
    """Of the images without an answer: share of right labels; share accepted and wrong ones among these, NaN if there
    are none; the same for confidences above 0.9."""
    torch.manual_seed(seed)
    truth = torch.randint(classes, (images,))
    centres = torch.randn(2 * classes, 256)
    half = classes // 4 * 2
    centres[1:half:2] = centres[:half:2] + 0.7 * torch.randn(half // 2, 256)
    is_junk = torch.rand(images) < junk
    values = centres[truth + classes * is_junk] + 2.5 * torch.randn(images, 256)
    vectors = torch.nn.functional.normalize(values, dim=1)
    texts = torch.nn.functional.normalize(centres[:classes] + 1.4 * torch.randn(classes, 256), dim=1)
    probabilities = (100 * (vectors + 0.06 * torch.randn(images, 256)) @ texts.T).softmax(1).half()
    truth = torch.where(is_junk, -1, truth)
    parts = (Whitening(torch.zeros(1, 128).half(), torch.zeros(128)) for _ in range(2))
    fit, others = probabilities.amax(1).float(), probabilities[None][:0]
    pool = Pool(torch.arange(images), [""] * images, vectors.half(), probabilities, others, fit, *parts)
    device = torch.device("cpu")
    before = build_memory(pool, answer_rows({}, pool.numbers), device)[1].labels.argmax(1)
    answered = torch.from_numpy(random_order(before.numpy(), seed)[:answers].copy())
    labels = torch.where(torch.rand(answers) < noise, torch.randint(classes, (answers,)), truth[answered])
    known = dict(zip(answered.tolist(), labels.tolist(), strict=True))
    refined = refine_pool(pool, Answers(known, known), device, images, RISK)
    unanswered = torch.ones(images, dtype=torch.bool)
    unanswered[answered] = False
    wrong = (refined.labels.labels != truth)[unanswered]
    accepted = torch.zeros(images) if refined.accepted is None else torch.from_numpy(refined.accepted).float()
    row = [float(1 - wrong.float().mean())]
    for chosen in (accepted[unanswered] > 0, refined.labels.confidence[unanswered] > 0.9):
        row += [float(chosen.float().mean()), float(wrong[chosen].float().mean())]
    return row


if __name__ == "__main__":
    main()
