"""Every metric against numbers worked out by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch

from must.evaluation.metrics import (
    bin_numbers,
    calibration_error,
    confused_pairs,
    confusion_matrix,
    labelled_results,
    per_class,
    reliability,
    scalar_metrics,
)
from must.evaluation.scores import NO_LABEL, Collector


def scores_of(probability, labels):
    collector = Collector(probability.shape[1])
    collector.add(torch.from_numpy(np.log(probability)).float(), np.asarray(labels))
    return collector.result()


def results_of(probability, labels):
    labels = np.asarray(labels)
    return labelled_results(scores_of(probability, labels), labels, labels != NO_LABEL, probability.shape[1])


def random_task(images=400, classes=12, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)) * 2
    labels = generator.integers(0, classes, images)
    logits[np.arange(images), labels] += 1.5
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probability, labels


def test_by_hand():
    probability = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    values = scalar_metrics(results_of(probability, [0, 1, 2, 2]))
    assert values["top1"] == 0.75
    assert values["top5"] == 1.0  # of three classes, all are among the five best
    assert values["mean_per_class"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert values["nll"] == pytest.approx(
        -(math.log(0.7) + math.log(0.6) + math.log(0.2) + math.log(0.5)) / 4, abs=1e-6
    )
    assert values["confidence"] == pytest.approx((0.7 + 0.6 + 0.5 + 0.5) / 4)
    # bins (0.667, 0.733], (0.6, 0.667] (0.6 in float32 is above 3/5), (0.467, 0.533] with one right of two
    assert values["ece"] == pytest.approx((0.3 + 0.4 + abs(1 - (0.5 + 0.5))) / 4, abs=1e-6)


def test_against_scikit_learn():
    from sklearn import metrics as sk  # takes a second, which other processes need not wait for

    probability, labels = random_task()
    results = results_of(probability, labels)
    values = scalar_metrics(results)
    assert values["top1"] == pytest.approx(sk.accuracy_score(labels, probability.argmax(1)))
    assert values["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, probability, k=5))
    assert values["mean_per_class"] == pytest.approx(sk.balanced_accuracy_score(labels, probability.argmax(1)))
    assert values["nll"] == pytest.approx(sk.log_loss(labels, probability), rel=1e-5)
    matrix = confusion_matrix(labels, probability.argmax(1), 12)
    assert (matrix == sk.confusion_matrix(labels, probability.argmax(1))).all()
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, probability.argmax(1))
    rows = per_class(results)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in rows] == pytest.approx(expected)


def test_weights_mean_repeated_images():
    probability, labels = random_task(images=60)
    counts = np.random.default_rng(1).integers(0, 4, 60)
    repeated = results_of(np.repeat(probability, counts, axis=0), np.repeat(labels, counts))
    assert scalar_metrics(results_of(probability, labels), counts.astype(float)) == pytest.approx(
        scalar_metrics(repeated)
    )


def test_calibration_error_of_a_calibrated_and_an_overconfident_model():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.2, 1, 200_000)
    assert calibration_error(confidence, generator.uniform(size=200_000) < confidence) < 0.01
    assert calibration_error(np.full(100, 0.9), np.arange(100) < 60) == pytest.approx(0.3)


def test_bins_are_closed_above():
    edges = np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 14 / 15, 1.0])
    assert bin_numbers(edges).tolist() == [0, 0, 1, 13, 14]


def test_reliability_counts_every_image_once():
    probability, labels = random_task()
    rows = reliability(results_of(probability, labels))
    assert sum(row["images"] for row in rows) == len(labels)
    assert all(row["low"] < row["confidence"] <= row["high"] for row in rows)
    accuracy = sum(row["images"] * row["accuracy"] for row in rows) / len(labels)
    assert accuracy == pytest.approx(np.mean(probability.argmax(1) == labels))


def test_a_class_without_images_has_no_recall_and_does_not_count():
    probability = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    results = results_of(probability, [0, 1])
    assert scalar_metrics(results)["mean_per_class"] == 0.5
    rows = per_class(results)
    assert rows[2] == {"support": 0, "predicted": 0, "recall": None, "precision": None, "f1": None}
    assert rows[1]["precision"] is None and rows[1]["f1"] == 0


def test_images_without_a_label_are_left_out():
    probability, labels = random_task(images=50)
    some = labels.copy()
    some[::2] = NO_LABEL
    assert scalar_metrics(results_of(probability, some)) == pytest.approx(
        scalar_metrics(results_of(probability[1::2], labels[1::2]))
    )


def test_confused_pairs_come_by_frequency_and_without_the_diagonal():
    matrix = np.array([[9, 2, 0], [5, 9, 0], [1, 0, 9]])
    assert confused_pairs(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
    assert len(confused_pairs(matrix, 50)) == 3


def test_the_collector_does_not_depend_on_the_batches():
    probability, labels = random_task(images=64)
    whole, parts = scores_of(probability, labels), Collector(12)
    for rows in np.array_split(np.arange(64), 5):
        parts.add(torch.from_numpy(np.log(probability[rows])).float(), labels[rows])
    joined = parts.result()
    assert (whole.top == joined.top).all()
    for name in ("top_probability", "label_log_probability", "entropy", "probability_sum"):
        np.testing.assert_allclose(getattr(whole, name), getattr(joined, name), rtol=1e-6)
