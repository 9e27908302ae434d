"""The order by coverage: every kind of picture is asked about before a kind is asked about twice."""

import numpy as np
import pytest

from must.method.answers import coverage
from must.method.answers.coverage import order_by_coverage, similarity

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


def test_what_has_an_answer_is_covered_and_not_asked_again():
    vectors, members = groups([50, 5, 30])
    already = np.flatnonzero(members == 0)[:2]
    order = order_by_coverage(vectors, None, already, 200)
    assert members[order[:2]].tolist() == [2, 1]
    assert len(order) == 83 and not {*order} & {*already}, "every other picture, once"


def test_a_weight_prefers_images_that_are_worth_more():
    vectors, members = groups([50, 30])
    assert members[order_by_coverage(vectors, np.where(members == 0, 0.1, 0.9), NONE, 1)] == [1]


@pytest.mark.parametrize("batch", [1, 64])
def test_the_order_is_that_of_the_plain_greedy_algorithm(monkeypatch, batch):
    monkeypatch.setattr(coverage, "COVERAGE_BATCH", batch)
    monkeypatch.setattr(coverage, "BLOCK", 17)
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


def test_of_very_many_images_evenly_spread_ones_are_compared(monkeypatch):
    monkeypatch.setattr(coverage, "COVERAGE_CANDIDATES", 100)
    monkeypatch.setattr(coverage, "COVERED", 60)
    vectors, members = groups([500, 400, 300])
    order = order_by_coverage(vectors, None, np.array([1, 2, 3]), 50)
    assert {*members[order]} == {0, 1, 2} and len({*order}) == 50


@pytest.mark.parametrize("images", [0, 1])
def test_no_picture_may_be_left(images):
    vectors = np.ones((images, 1), np.float32)
    assert order_by_coverage(vectors, None, np.arange(images), 5).tolist() == []
    assert order_by_coverage(vectors, None, NONE, 5).tolist() == [*range(images)]
