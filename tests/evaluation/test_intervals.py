"""Intervals and tests against closed forms."""

import numpy as np
import pytest

from must.evaluation.metrics import bootstrap, interval, mcnemar, paired
from tests.evaluation.test_metrics import random_task, results_of


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 5), (2, 10), (600, 520)])
def test_mcnemar_is_the_exact_binomial_test(fixed, broken):
    from scipy.stats import binomtest  # takes a second, which other processes need not wait for

    expected = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_interval_is_the_normal_one_for_an_accuracy():
    probability, labels = random_task(images=1000)
    results = results_of(probability, labels)
    accuracy = results.correct.mean()
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 1000)
    low, high = interval([replicate[0]["top1"] for replicate in bootstrap([results])])
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.005)


def test_differences_are_paired():
    """Two models that differ on few images: the interval of the difference is far narrower than either model's."""
    probability, labels = random_task(images=500)
    better = probability.copy()
    wrong = np.flatnonzero(probability.argmax(1) != labels)[:10]
    better[wrong] = np.eye(12)[labels[wrong]] * 0.9 + 0.1 / 12
    old, new = results_of(probability, labels), results_of(better, labels)
    replicates = bootstrap([new, old])
    low, high = interval([after["top1"] - before["top1"] for after, before in replicates])
    assert 0 < low < 10 / 500 < high
    alone = interval([replicate[1]["top1"] for replicate in replicates])
    assert high - low < 0.5 * (alone[1] - alone[0])
    found = paired(old, new)
    assert (found.fixed, found.broken, found.both_right) == (10, 0, int(old.correct.sum()))
    assert found.both_wrong == 500 - int(new.correct.sum()) and found.mcnemar_p == pytest.approx(2 * 0.5**10)


def test_the_same_numbers_every_time():
    results = results_of(*random_task(images=50))
    assert bootstrap([results], replicates=20) == bootstrap([results], replicates=20)
