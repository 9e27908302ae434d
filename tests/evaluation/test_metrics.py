"""Every metric against numbers worked out by hand, closed forms and scikit-learn; with labels and without."""

import math

import numpy as np
import pytest

from must.evaluation import metrics
from must.evaluation.metrics import NO_LABEL
from tests.evaluation.measured import scores_of


def results_of(probability, labels):
    labels = np.asarray(labels)
    scores = scores_of(np.log(probability), labels)
    return metrics.select_labelled(scores, labels, labels != NO_LABEL, probability.shape[1])


def random_task(images=400, classes=12, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)) * 2
    labels = generator.integers(0, classes, images)
    logits[np.arange(images), labels] += 1.5
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probability, labels


def test_by_hand():
    probability = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    values = metrics.compute_scalar_metrics(results_of(probability, [0, 1, 2, 2]))
    assert (values["top1"], values["top5"]) == (0.75, 1.0)  # of three classes, all are among the five best
    assert values["mean_per_class"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert values["nll"] == pytest.approx(-sum(map(math.log, (0.7, 0.6, 0.2, 0.5))) / 4, abs=1e-6)
    assert values["confidence"] == pytest.approx((0.7 + 0.6 + 0.5 + 0.5) / 4)
    # bins (0.667, 0.733], (0.6, 0.667] (0.6 in float32 is above 3/5), (0.467, 0.533] with one right of two
    assert values["ece"] == pytest.approx((0.3 + 0.4 + abs(1 - (0.5 + 0.5))) / 4, abs=1e-6)


def test_against_scikit_learn():
    from sklearn import metrics as sk  # takes a second, which other processes need not wait for

    probability, labels = random_task()
    results = results_of(probability, labels)
    values = metrics.compute_scalar_metrics(results)
    assert values["top1"] == pytest.approx(sk.accuracy_score(labels, probability.argmax(1)))
    assert values["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, probability, k=5))
    assert values["mean_per_class"] == pytest.approx(sk.balanced_accuracy_score(labels, probability.argmax(1)))
    assert values["nll"] == pytest.approx(sk.log_loss(labels, probability), rel=1e-5)
    matrix = metrics.count_confusions(labels, probability.argmax(1), 12)
    assert (matrix == sk.confusion_matrix(labels, probability.argmax(1))).all()
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, probability.argmax(1))
    rows = metrics.measure_classes(results)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in rows] == pytest.approx(expected)


def test_weights_mean_repeated_images():
    probability, labels = random_task(images=60)
    counts = np.random.default_rng(1).integers(0, 4, 60)
    repeated = metrics.compute_scalar_metrics(
        results_of(np.repeat(probability, counts, axis=0), np.repeat(labels, counts))
    )
    weighted = metrics.compute_scalar_metrics(results_of(probability, labels), counts.astype(float))
    assert weighted == pytest.approx(repeated)


def test_calibration_error_of_a_calibrated_and_an_overconfident_model():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.2, 1, 200_000)
    assert (
        metrics.compute_calibration_error(confidence, generator.uniform(size=200_000) < confidence, np.ones(200_000))
        < 0.01
    )
    assert metrics.compute_calibration_error(np.full(100, 0.9), np.arange(100) < 60, np.ones(100)) == pytest.approx(0.3)


def test_a_class_without_images_has_no_recall_and_does_not_count():
    probability = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    results = results_of(probability, [0, 1])
    assert metrics.compute_scalar_metrics(results)["mean_per_class"] == 0.5
    rows = metrics.measure_classes(results)
    assert rows[2] == {"support": 0, "predicted": 0, "recall": None, "precision": None, "f1": None}
    assert rows[1]["precision"] is None and rows[1]["f1"] == 0


def test_confused_pairs_come_by_frequency_and_without_the_diagonal():
    matrix = np.array([[9, 2, 0], [5, 9, 0], [1, 0, 9]])
    assert (
        metrics.list_confused_pairs(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
        and len(metrics.list_confused_pairs(matrix, 50)) == 3
    )


def test_bootstrap_interval_is_the_normal_one_for_an_accuracy_and_always_the_same():
    results = results_of(*random_task(images=1000))
    accuracy = results.correct.mean()
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 1000)
    low, high = metrics.find_interval(metrics.resample_metrics([results])["top1"][:, 0])
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.005)
    first, again = (metrics.resample_metrics([results], replicates=20)["nll"] for _ in range(2))
    assert (first == again).all()


def test_differences_are_paired():
    """Two models that differ on few images: the interval of the difference is far narrower than either model's."""
    probability, labels = random_task(images=500)
    better = probability.copy()
    wrong = np.flatnonzero(probability.argmax(1) != labels)[:10]
    better[wrong] = np.eye(12)[labels[wrong]] * 0.9 + 0.1 / 12
    old, new = results_of(probability, labels), results_of(better, labels)
    top1 = metrics.resample_metrics([new, old])["top1"]
    low, high = metrics.find_interval(top1[:, 0] - top1[:, 1])
    assert 0 < low < 10 / 500 < high
    alone = metrics.find_interval(top1[:, 1])
    assert high - low < 0.5 * (alone[1] - alone[0])
