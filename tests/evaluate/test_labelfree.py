"""Label-free numbers of predictions whose answer is known."""

import numpy as np
import pytest

from must.evaluation.labelfree import compare, label_free
from must.evaluation.scores import NO_LABEL
from tests.evaluate.test_metrics import random_task, scores_of


def one_hot_scores(classes_of_images, classes, sharpness=0.999):
    rest = (1 - sharpness) / (classes - 1)
    probability = np.full((len(classes_of_images), classes), rest)
    probability[np.arange(len(classes_of_images)), classes_of_images] = sharpness
    return scores_of(probability, np.full(len(classes_of_images), NO_LABEL))


def test_sure_and_balanced_is_the_best_there_is():
    values = label_free(one_hot_scores(np.arange(100) % 5, 5, sharpness=1 - 1e-6))
    assert values.mutual_information == pytest.approx(1, abs=1e-4)
    assert values.nuclear_norm == pytest.approx(1, abs=1e-4)
    assert values.effective_classes == pytest.approx(5)
    assert values.confident == 1
    assert values.histogram == [20] * 5


def test_collapsed_is_sure_but_says_nothing():
    values = label_free(one_hot_scores(np.zeros(100, int), 5, sharpness=1 - 1e-6))
    assert values.confidence == pytest.approx(1, abs=1e-5)
    assert values.mutual_information == pytest.approx(0, abs=1e-3)
    assert values.nuclear_norm == pytest.approx(1 / np.sqrt(5), abs=1e-3)
    assert values.effective_classes == pytest.approx(1)


def test_against_the_definitions():
    probability, _ = random_task(images=80, classes=7)
    values = label_free(scores_of(probability, np.full(80, NO_LABEL)))
    nuclear = np.linalg.norm(probability, "nuc") / np.sqrt(80 * 7)
    assert values.nuclear_norm == pytest.approx(nuclear, rel=1e-5)
    entropy = lambda p: -(p * np.log(p)).sum(-1)  # noqa: E731
    information = entropy(probability.mean(0)) - entropy(probability).mean()
    assert values.mutual_information == pytest.approx(information / np.log(7), rel=1e-5)


def test_compare_sees_what_vanished_and_what_took_over():
    before = one_hot_scores(np.arange(100) % 5, 5)
    after = one_hot_scores(np.where(np.arange(100) % 5 == 4, 0, np.arange(100) % 5), 5)
    found = compare(before, after)
    assert found.agreement == 0.8
    assert found.agreement_confident == 0.8
    assert found.histogram_distance == pytest.approx(0.2)
    assert found.vanished == [4]
    assert found.dominant == []
    everything = compare(before, one_hot_scores(np.zeros(100, int), 5))
    assert everything.dominant == [0] and everything.vanished == [1, 2, 3, 4]


def test_no_confident_image():
    unsure = one_hot_scores(np.arange(10) % 5, 5, sharpness=0.5)
    assert compare(unsure, unsure).agreement_confident is None


def adapted_from(before_quality, change, images=2000, classes=8, seed=0):
    """(zero-shot scores, adapted scores, the true change of accuracy) of a task whose zero-shot model is calibrated."""
    generator = np.random.default_rng(seed)
    logits = before_quality * generator.normal(size=(images, classes))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([generator.choice(classes, p=row) for row in probability])
    said = change(labels, probability.argmax(1), generator)
    before, after = scores_of(probability, labels), one_hot_scores(said, classes)
    return before, after, float((said == labels).mean() - (probability.argmax(1) == labels).mean())


def unchanged(labels, zero_shot, generator):
    return zero_shot


def half_of_the_mistakes_mended(labels, zero_shot, generator):
    return np.where(generator.random(len(labels)) < 0.5, labels, zero_shot)


def names_rotated(labels, zero_shot, generator):
    return (labels + 1) % 8


def one_class_taken_for_another(labels, zero_shot, generator):
    return np.where(zero_shot == 1, 4, zero_shot)


def all_one_class(labels, zero_shot, generator):
    return np.zeros_like(labels)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (unchanged, 1e-12),
        (half_of_the_mistakes_mended, 0.08),
        (names_rotated, 0.08),
        (one_class_taken_for_another, 0.04),
        (all_one_class, 0.04),
    ],
)
def test_the_estimate_is_near_where_zero_shot_is_calibrated(change, tolerance):
    """Also for a model that is certain of everything it says, which says nothing about its accuracy."""
    before, after, truth = adapted_from(2.0, change)
    found = compare(before, after)
    assert found.estimated_change == pytest.approx(truth, abs=tolerance)
    assert found.confidence_change > 0.2


def test_the_estimate_of_many_classes_looks_at_the_five_best():
    before, after, truth = adapted_from(3.0, half_of_the_mistakes_mended, images=3000, classes=40)
    assert 0 < compare(before, after).estimated_change < 2 * truth
