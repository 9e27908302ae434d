"""Nearest neighbours in whitened features: small examples whose answer is known, and blocks against brute force."""

import math

import pytest
import torch
from must.method.select import propagate
from must.method.select.propagate import nearest, whitened


def at_degrees(*angles):
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


def test_neighbours_are_the_nearest_others_best_first():
    numbers, cosines = nearest(at_degrees(0, 10, 30, 180), count=2)
    assert numbers.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    expected = [[10, 30], [10, 20], [20, 30], [150, 170]]
    assert torch.allclose(cosines, torch.cos(torch.deg2rad(torch.tensor(expected, dtype=torch.float32))), atol=1e-6)


def test_blocks_make_no_difference(monkeypatch):
    values = torch.nn.functional.normalize(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = nearest(values)
    similar = values @ values.T
    similar.fill_diagonal_(-torch.inf)
    assert torch.equal(whole[0], similar.topk(10, dim=1).indices) and whole[0].shape == (50, 10)
    monkeypatch.setattr(propagate, "ROWS", 7)
    parts = nearest(values)
    assert torch.equal(parts[0], whole[0]) and torch.allclose(parts[1], whole[1])


@pytest.mark.parametrize("images, count", [(1, 0), (3, 2), (11, 10), (30, 10)])
def test_few_images_have_few_neighbours(images, count):
    numbers, cosines = nearest(at_degrees(*range(images)))
    assert numbers.shape == cosines.shape == (images, count)


def test_what_most_images_differ_in_weighs_no_more_than_the_rest():
    """Whitened: stretching the features along any direction changes no similarity, where all components are kept."""
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    features[:, 0] *= 50
    stretched = (features + 3) @ torch.diag(torch.tensor([1.0, 100, 0.1, 3, 1, 1]))
    one, other = whitened(features), whitened(stretched)
    assert one.shape == (40, 6) and torch.allclose(one.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(one @ one.T, other @ other.T, atol=1e-4)


def test_there_is_a_component_for_each_four_images_and_none_where_nothing_differs():
    assert whitened(torch.randn(20, 64)).shape == (20, 5)
    constant = whitened(torch.ones(20, 64))
    assert torch.isfinite(constant).all()
    assert whitened(torch.randn(9, 4).half()).dtype == torch.float32
