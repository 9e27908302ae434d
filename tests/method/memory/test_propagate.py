"""Labels from neighbours and from answers: examples by hand."""

import pytest
import torch

from must.method.memory import propagate as module
from must.method.memory.propagate import RARE, VOTES, answer_rows, fit_correction, measure_sharing, propagate
from must.method.model.memory import apply_correction
from must.method.model.vectors import neighbour_weights

PAIR = torch.tensor([[1], [0]])  # each is the other's neighbour
FOUR = torch.tensor([[1], [0], [3], [2]])  # two pairs of neighbours


def test_a_round_by_hand(monkeypatch):
    """Neighbours that agree as often as by chance change nothing; where all agree, each counts in full."""
    monkeypatch.setattr(module, "ROUNDS", 1)
    P = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.8, 0.2]])
    assert measure_sharing(FOUR, torch.ones(4, 1), torch.tensor([0, 0, 1, 1])) == 1.0
    assert measure_sharing(FOUR, torch.ones(4, 1), torch.tensor([0, 1, 0, 1])) == 0.0
    shared = measure_sharing(FOUR, torch.ones(4, 1), P.argmax(1))
    assert shared == 0.0 and torch.allclose(propagate(FOUR, torch.ones(4, 1), P).labels, P)
    P = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])
    expected = P * (P[[1, 0, 3, 2]] / (P.mean(0) + RARE)) ** VOTES
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(propagate(FOUR, torch.ones(4, 1), P).labels, expected, atol=1e-6)


def test_nearer_neighbours_weigh_more(monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "measure_sharing", lambda *_: 0.5)
    P = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    neighbours, cosines = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[1.0, 0.5], [1, 1], [1, 1]])
    assert propagate(neighbours, cosines, P).labels[0].argmax() == 0
    assert propagate(neighbours, cosines.flip(1), P).labels[0].argmax() == 1


def test_neighbours_that_know_nothing_of_the_classes_change_next_to_nothing():
    generator = torch.Generator().manual_seed(0)
    P = torch.randn(2_000, 50, generator=generator).mul(3).softmax(1)
    neighbours = torch.randint(0, 2_000, (2_000, 10), generator=generator)
    found, shared = propagate(neighbours, torch.ones(2_000, 10), P)
    assert shared == measure_sharing(neighbours, neighbour_weights(torch.ones(2_000, 10)), P.argmax(1)) < 0.01
    assert (found.argmax(1) != P.argmax(1)).float().mean() < 0.05


def test_answered_images_stay_at_their_class_and_none_of_the_classes_is_none():
    P = torch.full((2, 3), 1 / 3)
    found = propagate(PAIR, torch.ones(2, 1), P, torch.tensor([0, 1]), torch.tensor([2, -1])).labels
    assert found.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_blocks_make_no_difference(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    neighbours, cosines = torch.randint(0, 40, (40, 5), generator=generator), torch.rand(40, 5, generator=generator)
    P = torch.rand(40, 6, generator=generator).softmax(1)
    whole = propagate(neighbours, cosines, P).labels
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 100)
    assert torch.allclose(propagate(neighbours, cosines, P).labels, whole, atol=1e-6)


P64 = torch.tensor([[0.6, 0.4]]).repeat(4, 1)
VALUES = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])


def test_answers_correct_the_images_that_are_like_them():
    """Two answers about one picture, by hand: the change of image i is 2 k(i, a) / (2 k(a, a) + 1) (answer - P)."""
    correction = fit_correction(P64, VALUES, torch.tensor([0, 1]), torch.tensor([1, 1]))
    own = 1 + 0.6**2 + 0.4**2
    like, unlike = 2 * own / (2 * own + 1), 2 * (own - 1) / (2 * own + 1)
    expected = [0.6 - 0.6 * like] * 3 + [0.6 - 0.6 * unlike]
    found = apply_correction(P64, VALUES, correction)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    half = apply_correction(P64, VALUES, correction, torch.tensor([1, 0.5, 0, 1]))
    assert half[:, 0].tolist() == pytest.approx([expected[0], (0.6 + expected[0]) / 2, 0.6, expected[3]], abs=1e-6)


@pytest.mark.parametrize("answered, labels", [([], []), ([0], [1]), ([0, 1], [0, 1])])
def test_answers_that_do_not_predict_each_other_correct_nothing(answered, labels):
    assert fit_correction(P64, VALUES, torch.tensor(answered).long(), torch.tensor(labels).long()) is None


def test_answers_are_found_among_the_images_that_could_be_decoded():
    assert answer_rows({7: 2, 3: -1, 4: 0}, torch.tensor([3, 5, 7])).tolist() == [[0, 2], [-1, 2]]
    assert answer_rows({}, torch.tensor([3])).shape == (2, 0)
