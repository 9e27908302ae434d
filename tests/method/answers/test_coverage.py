"""The order by coverage: every kind of picture is asked about before a kind is asked about twice."""

import numpy as np
import pytest

from must.method.answers import review
from must.method.answers.review import order_by_coverage, similarity

NONE = np.zeros(0, np.int64)


def groups(sizes, spread=0.05, seed=0):
    """(float32 [N, 8] unit vectors of groups of similar images, int64 [N] their groups), shuffled."""
    rng = np.random.default_rng(seed)
    members = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(8)[members] + spread * rng.normal(size=(len(members), 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), members


def test_each_group_is_asked_about_once_the_largest_first():
    vectors, members = groups([50, 5, 30, 1, 10])
    order = order_by_coverage(vectors, None, NONE, 5)
    assert members[order].tolist() == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("batch", [1, 64])
def test_the_order_is_that_of_the_plain_greedy_algorithm(monkeypatch, batch):
    monkeypatch.setattr(review, "COVERAGE_BATCH", batch)
    monkeypatch.setattr(review, "BLOCK", 17)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(150, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weight, already = rng.random(150), np.array([3, 4])
    similar, expected = similarity(vectors, vectors), []
    covered = similar[already].max(0)
    for _ in range(40):
        gains = np.maximum(similar - covered, 0) @ weight
        gains[[*already, *expected]] = -1
        expected.append(int(gains.argmax()))
        covered = np.maximum(covered, similar[expected[-1]])
    assert order_by_coverage(vectors, weight, already, 40).tolist() == expected


@pytest.mark.parametrize("images", [0, 1])
def test_no_picture_may_be_left(images):
    vectors = np.ones((images, 1), np.float32)
    assert order_by_coverage(vectors, None, np.arange(images), 5).tolist() == []
    assert order_by_coverage(vectors, None, NONE, 5).tolist() == [*range(images)]
