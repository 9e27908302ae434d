"""Refined zero-shot as arithmetic: what moves, what stays, and what it must not depend on."""

import numpy as np
import pytest

from must.method.select.image_features import softmax
from must.method.select.label_propagation import ROUNDS, for_copies, mutual, recognised, refined
from must.method.select.neighbours import look_alikes
from must.method.select.refine import RECOGNISED, between, refit
from tests.select.test_ladder import EACH, TRUTH, K, said, tokens, wrong

__all__ = ["tokens"]


def by_hand(p, neighbours):
    """The formula, an image at a time."""
    at_home = [set(row) for row in neighbours]
    z = p.astype(float)
    for _ in range(ROUNDS):
        before = z.copy()
        for i in range(len(p)):
            mine = [j for j in neighbours[i] if i in at_home[j]]
            if p[i].max() <= 0.9 and mine:
                value = p[i] ** 0.5 * np.exp(8 * before[mine].mean(0))
                z[i] = value / value.sum()
    return z


@pytest.fixture(scope="module")
def unsure(tokens):
    """Probabilities of a zero-shot that has 30% wrong, surer of some images than of others."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(len(TRUTH), K)) + 2.5 * np.eye(K)[wrong(0.3)]
    return softmax(logits).astype(np.float32)


def test_it_is_the_formula(tokens, unsure):
    neighbours, _ = look_alikes(tokens)
    assert np.abs(refined(unsure, neighbours) - by_hand(unsure, neighbours)).max() < 1e-4


def test_images_that_look_alike_correct_each_other(tokens, unsure):
    neighbours, _ = look_alikes(tokens)
    better = refined(unsure, neighbours).argmax(1)
    assert (better == TRUTH).mean() > (unsure.argmax(1) == TRUTH).mean() + 0.1


def test_sure_and_lonely_images_stay_to_the_bit(tokens, unsure):
    neighbours, _ = look_alikes(tokens)
    sure = unsure.max(1) > 0.9
    assert 0 < sure.sum() < len(sure)
    assert (refined(unsure, neighbours)[sure] == unsure[sure]).all()
    ring = (np.arange(len(unsure))[:, None] + 1) % len(unsure)  # each one's look-alike is the next: none is mutual
    assert not mutual(ring).any() and (refined(unsure, ring) == unsure).all()
    assert (refined(unsure[:1], np.zeros((1, 0), np.int32)) == unsure[:1]).all()


def test_look_alikes_recognise_the_surest_images_or_are_not_listened_to(tokens):
    neighbours, _ = look_alikes(tokens)
    rng = np.random.default_rng(5)
    right = softmax(rng.normal(size=(len(TRUTH), K)) + 2.5 * np.eye(K)[TRUTH]).astype(np.float32)
    assert (
        recognised(right, neighbours) > 0.95 > RECOGNISED > recognised(right, rng.permutation(len(TRUTH))[neighbours])
    )
    assert recognised(right[:1], np.zeros((1, 0), np.int32)) == 0


def test_copies_take_their_originals_answer(tokens):
    twice = np.concatenate([tokens, tokens[::-1]])
    neighbours, originals = look_alikes(twice)
    assert (originals == np.arange(len(tokens))).all()
    values = refined(said(wrong(0.3)), neighbours)
    spread = for_copies(values, originals, twice)
    assert (spread[: len(tokens)] == values).all() and (spread[len(tokens) :] == values[::-1]).all()


def test_copies_of_the_mean_image_are_copies_too(tokens):
    still = np.concatenate([tokens, np.repeat(tokens.mean(0, keepdims=True), 9, 0)]) + 5
    _, originals = look_alikes(still)
    assert originals.tolist() == list(range(len(tokens) + 1))
    assert for_copies(originals, originals, still)[len(tokens) :].tolist() == [len(tokens)] * 9


def test_refitted_weights_follow_the_labels_and_keep_their_length(unsure):
    rng = np.random.default_rng(2)
    unit = lambda x, axis: x / np.linalg.norm(x, axis=axis, keepdims=True)  # noqa: E731
    features = unit(np.eye(K, 8)[TRUTH] + 0.3 * rng.normal(size=(K * EACH, 8)), 1).astype(np.float32)
    text = unit(np.eye(8, K) + 0.5 * rng.normal(size=(8, K)), 0).astype(np.float32)
    before = ((features @ text).argmax(1) == TRUTH).mean()
    fitted = refit(features, np.eye(K)[TRUTH], text, 20.0)
    assert ((features @ fitted).argmax(1) == TRUTH).mean() > before
    for alpha in (0.3, 1.0):
        assert np.allclose(np.linalg.norm(between(text, fitted, alpha), axis=0), 1, atol=1e-6)
    assert between(text, fitted, 0) is text
    assert (refit(features, np.eye(K)[TRUTH], text, 20.0) == fitted).all()
    own = softmax(20 * features @ text)  # nothing to learn: the labels are what the text says
    assert np.abs(refit(features, own, text, 20.0) - text).max() < 1e-3
