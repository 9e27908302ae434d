"""Label-free numbers of predictions whose answer is known."""

import numpy as np
import pytest

from must.evaluation.metrics import compare, label_free
from must.evaluation.scores import NO_LABEL
from tests.evaluation.test_metrics import random_task, scores_of


def one_hot_scores(classes_of_images, classes, sharpness=0.999):
    rest = (1 - sharpness) / (classes - 1)
    probability = np.full((len(classes_of_images), classes), rest)
    probability[np.arange(len(classes_of_images)), classes_of_images] = sharpness
    return scores_of(probability, np.full(len(classes_of_images), NO_LABEL))


def test_sure_and_balanced_is_the_best_there_is():
    values = label_free(one_hot_scores(np.arange(100) % 5, 5, sharpness=1 - 1e-6))
    assert values.mutual_information == pytest.approx(1, abs=1e-4)
    assert values.effective_classes == pytest.approx(5)
    assert values.confident == 1
    assert values.histogram == [20] * 5


def test_collapsed_is_sure_but_says_nothing():
    values = label_free(one_hot_scores(np.zeros(100, int), 5, sharpness=1 - 1e-6))
    assert values.confidence == pytest.approx(1, abs=1e-5)
    assert values.mutual_information == pytest.approx(0, abs=1e-3)
    assert values.effective_classes == pytest.approx(1)


def test_against_the_definitions():
    probability, _ = random_task(images=80, classes=7)
    values = label_free(scores_of(probability, np.full(80, NO_LABEL)))
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
