"""How sure the numbers are: bootstrap intervals, and paired tests of two models on the same images."""

import math

import numpy as np

from must.evaluation.metrics import Labelled, scalar_metrics
from must.evaluation.result import Interval, Paired

REPLICATES = 1000


def bootstrap(models: list[Labelled], replicates: int = REPLICATES, seed: int = 0) -> list[list[dict[str, float]]]:
    """Metrics of resampled test sets: for each replicate, the summary of each model on the same resampled images.

    Sampling with replacement (Efron & Tibshirani 1993). All models see the same images in a replicate, so that the
    spread of a difference is that of paired results.
    """
    count = len(models[0].labels)
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(replicates):
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64)
        result.append([scalar_metrics(model, weights) for model in models])
    return result


def interval(values: list[float]) -> Interval:
    """The 95% percentile interval [low, high]."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired(before: Labelled, after: Labelled) -> Paired:
    """What the second model fixed and broke, and McNemar's exact test on these two counts."""
    fixed = int((~before.correct & after.correct).sum())
    broken = int((before.correct & ~after.correct).sum())
    return Paired(
        fixed=fixed,
        broken=broken,
        both_right=int((before.correct & after.correct).sum()),
        both_wrong=int((~before.correct & ~after.correct).sum()),
        mcnemar_p=mcnemar(fixed, broken),
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of McNemar's exact test: is a change as likely to fix as to break? (Binomial with p = 1/2.)"""
    changed = fixed + broken
    if not changed:
        return 1.0
    smaller = min(fixed, broken)
    logs = [
        math.lgamma(changed + 1) - math.lgamma(i + 1) - math.lgamma(changed - i + 1) - changed * math.log(2)
        for i in range(smaller + 1)
    ]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * sum(math.exp(value - top) for value in logs))
