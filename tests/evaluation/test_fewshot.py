"""The rivals that use labels, of benchmarks/few_shot.py."""

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.few_shot import Features, few_shot, fold_numbers, logistic_regression, tip_adapter
from must.evaluation.evaluate import load_baseline


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_tip_adapter_by_hand():
    """Two classes, one support image each. The zero-shot logits prefer class 0, the cache is nearer to class 1."""
    classifier = np.array([[1.0, 0.99], [0.0, np.sqrt(1 - 0.99**2)]], dtype=np.float32)
    few = Features(unit(np.array([[-1.0, 0.2], [1.0, -0.1]])), np.array([0, 1]))
    image = unit(np.array([[1.0, -0.1]]))
    zero_shot = image @ classifier
    assert zero_shot.argmax() == 0
    # the cache adds exp(-5.5 (1 - cos)) for each support image: 1 for class 1, nearly 0 for class 0
    assert tip_adapter(few, image, classifier, logit_factor=10.0)[0] == 1
    assert tip_adapter(few, image, classifier, logit_factor=1000.0)[0] == 0


def test_the_probe_is_the_usual_logistic_regression():
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    labels = generator.integers(3, 8, 60)  # classes 0 to 2 have no image
    features = unit(np.eye(16)[labels] + 0.6 * generator.normal(size=(60, 16)))
    images = unit(generator.normal(size=(500, 16)))
    expected = sklearn.LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(features, labels).predict(images)
    assert (logistic_regression(Features(features, labels), 1.0, images) == expected).mean() > 0.99


def test_folds_hold_every_class_evenly():
    labels = np.repeat([0, 1, 4], [8, 5, 4])
    folds = fold_numbers(labels, 4, seed=0)
    assert all(np.bincount(folds[labels == label], minlength=4).min() >= 1 for label in (0, 1, 4))
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 2


def test_more_labels_help_on_digits(digits):
    splits = {"shards": digits.shards, "split": "test", "few_shot_split": "train"}
    options = Namespace(**splits, shots=[1, 8], seeds=3, device="cpu", workers=0)
    found = few_shot(load_baseline(digits.classifier), options)
    probe, adapter = found["methods"].values()
    assert [row["shots"] for row in probe] == [1, 8]
    assert [row["images"] for row in probe] == [10, 78], "two images are missing where a class has but six"
    assert probe[1]["top1"] > probe[0]["top1"] and adapter[1]["top1"] > found["zero-shot"] > 0.5
    assert all(0 <= row["spread"] < 0.3 for row in probe)
