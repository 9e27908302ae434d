"""Vectors of images and their neighbours: small examples whose answer is known, and blocks against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from must.model import memory as module
from must.model.memory import (
    TOKENS_SHARE,
    Whitening,
    find_nearest,
    find_nearest_groups,
    join_vectors,
    make_grid,
    separate,
)


def at_degrees(*angles):
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_the_nearest_others_best_first():
    numbers, cosines = find_nearest(at_degrees(0, 10, 30, 180), count=2)
    assert numbers.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    expected = [[10, 30], [10, 20], [20, 30], [150, 170]]
    assert torch.allclose(cosines, torch.cos(torch.deg2rad(torch.tensor(expected, dtype=torch.float32))), atol=1e-6)


@pytest.mark.parametrize("limit, value", [("ROWS", 7), ("COSINES", 150)])
def test_blocks_make_no_difference(monkeypatch, limit, value):
    values = F.normalize(random(50, 7), dim=1)
    whole = find_nearest(values)
    similar = values @ values.T
    similar.fill_diagonal_(-torch.inf)
    assert torch.equal(whole[0], similar.topk(10, dim=1).indices) and whole[0].shape == (50, 10)
    monkeypatch.setattr(module, limit, value)
    parts = find_nearest(values)
    assert torch.equal(parts[0], whole[0]) and torch.allclose(parts[1], whole[1])


@pytest.mark.parametrize("images, count", [(1, 0), (3, 2), (11, 10), (30, 10)])
def test_few_images_have_few_neighbours(images, count):
    numbers, cosines = find_nearest(at_degrees(*range(images)))
    assert numbers.shape == cosines.shape == (images, count)


@pytest.fixture
def bursts():
    """Forty images of 64 numbers, in bursts of one to five frames, in any order; and the image of each."""
    of = torch.arange(40).repeat_interleave(torch.arange(40) % 5 + 1)
    of = of[torch.randperm(len(of), generator=torch.Generator().manual_seed(1))]
    return F.normalize(random(40, 64)[of] + 0.2 * random(len(of), 64, seed=2), dim=1), of


def test_a_burst_is_a_group_named_by_its_first_image(bursts):
    values, of = bursts
    near = find_nearest_groups(values, of)
    assert torch.equal(near.first[near.groups], torch.stack([(of == image).nonzero()[0, 0] for image in of]))


def test_few_copies_are_alike_unless_the_model_takes_them_for_the_same_class(bursts):
    """Few: below a fifth of all images. Of ten pairs, two may differ."""
    values, of = bursts
    once = torch.stack([(of == image).nonzero()[0, 0] for image in range(40)])
    rows = torch.cat([once, (of == 3).nonzero()[1:, 0], (of == 8).nonzero()[1:, 0]])
    some, named = values[rows], of[rows]
    assert len(find_nearest_groups(some, named).first) == 40 < len(rows) == 46
    named[(named == 8).nonzero()[:1]] = -1
    assert len(find_nearest_groups(some, named).first) == len(rows)
    assert len(find_nearest_groups(values, random(len(of)).argsort()).first) == 40, "many are copies"


def test_a_dense_class_is_no_burst_and_a_group_no_chain():
    """Thirty images as near as copies, among others; and a chain, where each image is near the next one only."""
    dense = F.normalize(torch.eye(400)[:1] + 0.02 * random(30, 400), dim=1)
    chain = torch.zeros(60, 400)
    for n in range(60):
        chain[n, 40 + n : 44 + n] = 0.5  # a cosine of 0.75 with the next, 0.5 with the one after
    assert float((dense @ dense.T).min()) > 0.7
    groups = find_nearest_groups(torch.cat([dense, chain]), torch.zeros(90, dtype=torch.int64))
    assert groups.first[groups.groups].tolist() == [*range(30), *(n - n % 2 for n in range(30, 90))]


def test_neighbours_of_groups_are_those_of_their_first_images(bursts):
    values, of = bursts
    near = find_nearest_groups(values, of)
    assert torch.equal(of[near.first][near.groups], of) and len(near.first) == 40
    numbers, cosines = find_nearest(values[near.first])
    assert torch.equal(near.numbers, numbers) and torch.equal(near.cosines, cosines)


def test_separated_images_are_groups_of_their_own(bursts, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 16)
    values, of = bursts
    near = find_nearest_groups(values, of)
    rows = torch.tensor([int(near.first[5]), *(of == 7).nonzero().flatten().tolist()])
    found = separate(near, values, rows)
    new = [row for row in rows.tolist() if row not in near.first]
    assert len(new) == 2 and found.first.tolist() == [*near.first.tolist(), *new]
    assert found.first[found.groups[rows]].tolist() == rows.tolist()
    others = ~torch.isin(torch.arange(len(of)), rows)
    assert torch.equal(found.groups[others], near.groups[others])
    numbers, cosines = find_nearest(values[found.first])
    torch.testing.assert_close(found.cosines, cosines)
    assert torch.equal(found.numbers, numbers)


def test_stretching_the_values_changes_no_cosine():
    """Where all components are kept; the projection is in half precision."""
    values = random(40, 6, seed=1)
    values[:, 0] *= 50
    stretched = (values + 3) @ torch.diag(torch.tensor([1.0, 100, 0.1, 3, 1, 1]))
    one, other = Whitening.fit(values), Whitening.fit(stretched)
    assert one.projection.dtype == torch.float16 and one.projection.shape == (6, 6) and one.offset.shape == (6,)
    a, b = one(values), other(stretched)
    assert torch.allclose(a.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(a @ a.T, b @ b.T, atol=5e-3)
    exact = torch.linalg.svd(values - values.mean(0), full_matrices=False)[0]
    assert torch.allclose(a @ a.T, F.normalize(exact, dim=1) @ F.normalize(exact, dim=1).T, atol=5e-3)


def test_a_component_for_each_four_images_and_none_where_nothing_differs():
    assert Whitening.fit(random(20, 64))(random(3, 64)).shape == (3, 5)
    values = random(40, 6)
    values[:, 5] = values[:, 4] + 1e-6 * values[:, 5]  # their difference is mostly rounding
    assert int((Whitening.fit(values).projection != 0).any(0).sum()) == 5
    for same in (torch.ones(20, 64), torch.ones(1, 64)):
        assert not Whitening.fit(same)(same).any()
    assert Whitening.fit(random(9, 4).half())(random(2, 4).half()).dtype == torch.float32


@pytest.mark.parametrize("side", [2, 4, 7, 14])
def test_cells_of_the_grid_are_those_of_adaptive_pooling(side):
    patches = random(2, side * side, 5)
    pooled = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), min(4, side))
    assert torch.allclose(make_grid(side * side) @ patches, pooled.flatten(2).transpose(1, 2), atol=1e-6)


def test_patches_that_form_no_square_are_one_cell():
    assert torch.equal(make_grid(6), torch.full((1, 6), 1 / 6))


def test_a_cosine_of_joined_vectors_is_the_mean_of_both_cosines():
    tokens, embedding = at_degrees(0, 60), at_degrees(0, 90)
    one, other = join_vectors(tokens, embedding)
    assert float(one @ other) == pytest.approx(TOKENS_SHARE * 0.5 + (1 - TOKENS_SHARE) * 0, abs=1e-6)
    assert float(one @ one) == pytest.approx(1)
