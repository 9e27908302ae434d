"""Could the ladder estimate the classes' shares itself? It could not: what came of it.

    python -m benchmarks.shifts.shares

Shares by EM on zero-shot's probabilities (Saerens 2002), and the same with the confusion that look-alikes of sure
images show, stand in for shares that a user gives. `leaning` is the test of honesty: a way on which nothing is learned,
zero-shot's probabilities being multiplied by the estimated shares, which makes it worse wherever the classes are even.
"""

from __future__ import annotations

import numpy as np

from benchmarks.shifts.judge import ALPHAS
from benchmarks.shifts.packages import ROOT
from must.method.select.ladder import RUNGS, climb
from must.method.select.neighbours import judges, look_alikes

ROUNDS, SURE = 200, 0.25


def by_em(likelihood: np.ndarray) -> np.ndarray:
    """[K] shares that make likelihoods [N, K] of the images most likely, none below a thousandth of an even one."""
    share = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(ROUNDS):
        belief = likelihood * share
        share = (belief / belief.sum(axis=1, keepdims=True)).mean(axis=0)
    share = np.maximum(share, 1e-3 / len(share))
    return share / share.sum()


def with_confusion(said: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """[N, K]: how likely an image's probabilities are of each class, as look-alikes of the images that zero-shot is
    surest of in that class are named."""
    named, sure = said.argmax(axis=1), said.max(axis=1)
    confusion = np.eye(said.shape[1])
    for k in np.unique(named):
        there = np.flatnonzero(named == k)
        surest = there[np.argsort(-sure[there])[: max(3, int(np.ceil(SURE * len(there))))]]
        confusion[k] = said[neighbours[surest]].reshape(-1, said.shape[1]).mean(axis=0)
    return said @ confusion.T


def main() -> None:
    for path in sorted((ROOT / "runs").glob("*/looks-*.npz")):
        looks = dict(np.load(path))
        _, originals = look_alikes(looks["tokens"].astype(np.float32))
        neighbours = judges(looks["tokens"][originals].astype(np.float32))
        said = looks["probabilities"][:, originals].astype(np.float64)
        hidden, truth, counts = looks["hidden"][originals], looks["test_truth"], looks["counts"]
        share = np.bincount(hidden[hidden >= 0], minlength=said.shape[2]) / max((hidden >= 0).sum(), 1)
        weight = (counts / np.maximum(np.bincount(truth, minlength=len(counts)), 1))[truth]
        right = (looks["test"] == truth) * weight / weight.sum()
        points = 100 * (right.sum(axis=1) - right[0].sum())
        em, confusion = by_em(said[0]), by_em(with_confusion(said[0], neighbours))
        found: dict[str, np.ndarray | None] = {"none": None, "em": em, "confusion": confusion}
        told = [f"{path.parent.name}: best {points.max():+.1f}"]
        for name, shares in found.items():
            alpha = climb(said, looks["labels"][:, originals], neighbours, RUNGS, shares).alpha
            off = "" if shares is None else f" (off by {np.abs(shares - share).sum() / 2:.2f})"
            told.append(f"{name}{off}: {points[ALPHAS.index(alpha)]:+.1f} at {alpha:g}")
        leaning = np.stack([said[0] * (em * len(share)) ** alpha for alpha in ALPHAS])
        leaning /= leaning.sum(axis=2, keepdims=True)
        labels = leaning.argmax(axis=2)
        change = 100 * ((labels == hidden).mean(axis=1) - (labels[0] == hidden).mean())
        for name in ("none", "em"):
            alpha = climb(leaning, labels, neighbours, RUNGS, found[name]).alpha
            told.append(f"leaning, {name}: {change[ALPHAS.index(alpha)]:+.1f} at {alpha:g}")
        print("; ".join(told), flush=True)


if __name__ == "__main__":
    main()
