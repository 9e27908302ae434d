"""The rivals that use labels, of benchmarks/few_shot.py."""

import numpy as np
import pytest

from benchmarks.few_shot import (
    Features,
    logistic_regression,
    tip_adapter,
)  # fmt: skip


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


@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_the_probe_is_the_usual_logistic_regression(c):
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    labels = generator.integers(3, 8, 60)  # classes 0 to 2 have no image
    features = unit(np.eye(16)[labels] + 0.6 * generator.normal(size=(60, 16)))
    images = unit(generator.normal(size=(500, 16)))
    expected = sklearn.LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(features, labels).predict(images)
    assert (logistic_regression(Features(features, labels), c, images) == expected).mean() > 0.99
