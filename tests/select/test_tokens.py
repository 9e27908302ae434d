"""What the frozen tower's middle says of an image: the same for every batch, family of towers and process."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from must.method.model.backbone import load_backbone
from must.method.model.masked_vit import MaskedViT
from must.method.model.towers import tower_of
from must.method.select.tokens import GRID, NUMBERS, WIDE, MiddleTokens
from tests.model.tiny import EMBED, FAMILIES, LAYERS, PATCH, SIZE, WIDTH, model_folder

PATCHES = (SIZE // PATCH) ** 2


def network(folder):
    torch.manual_seed(1)
    visual = load_backbone(folder, "", with_tokenizer=False).clip.visual
    embed = tower_of(visual).embed
    return MaskedViT(visual, F.normalize(torch.randn(embed, 3), dim=0)).eval()


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def tokens(model, batches):
    middle = MiddleTokens(model)
    for batch in batches:
        with middle:
            model(batch)
    return middle.result()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return network(model_folder("clip", tmp_path_factory.mktemp("models") / "clip"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_towers_has_a_middle(family, tmp_path):
    model, pixels = network(model_folder(family, tmp_path / "model")), images(5)
    found = tokens(model, [pixels])
    assert found.shape == (5, PATCHES * WIDTH) and found.dtype == np.float32 and np.isfinite(found).all()
    assert len(np.unique(found.round(4), axis=0)) == 5, "different images look different"
    with torch.inference_mode():
        before = model(pixels)
        with MiddleTokens(model):
            assert torch.equal(model(pixels), before), "looking on changes nothing"


def test_they_are_the_patches_after_half_of_the_blocks(clip):
    caught = []
    hook = clip.tower.blocks[LAYERS // 2 - 1].register_forward_hook(lambda _, __, output: caught.append(output))
    found = tokens(clip, [images(2)])
    hook.remove()
    assert np.array_equal(found, clip.tower.patches(caught[0]).flatten(1).numpy())
    assert EMBED != WIDTH, "so that these are no features"


def test_what_comes_after_the_middle_has_no_part_in_them(clip):
    before = tokens(clip, [images(3)])
    with torch.no_grad():
        kept = {name: value.clone() for name, value in clip.tower.blocks[-1].state_dict().items()}
        for parameter in clip.tower.blocks[-1].parameters():
            parameter.mul_(2)
        assert np.array_equal(tokens(clip, [images(3)]), before)
        clip.tower.blocks[-1].load_state_dict(kept)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_batches_make_no_difference(clip, size):
    whole = tokens(clip, [images(7)])
    assert np.abs(tokens(clip, images(7).split(size)) - whole).max() < 1e-5


def test_nothing_is_collected_outside_the_context(clip):
    middle = MiddleTokens(clip)
    with torch.inference_mode():
        clip(images(2))
        with middle:
            clip(images(1))
        clip(images(3))
    assert middle.result().shape[0] == 1


@pytest.mark.parametrize("side, width", [(8, 128), (14, 64), (7, 40), (16, 100)])
def test_more_patches_are_pooled_to_four_by_four(clip, side, width):
    patches = torch.randn(2, side * side, width, generator=torch.Generator().manual_seed(2))
    found = MiddleTokens(clip).reduced(patches)
    assert found.shape == (2, GRID * GRID * width)
    corner = patches.unflatten(1, (side, side))[:, : -(-side // 4), : -(-side // 4)].mean((1, 2))
    assert torch.allclose(found[:, :width], corner, atol=1e-5), "the first cell is the mean of the first corner"


def test_patches_that_make_no_square_stay_as_they_are(clip):
    patches = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(MiddleTokens(clip).reduced(patches), patches.flatten(1))


def test_a_wide_tower_is_projected_by_a_matrix_that_is_always_the_same(clip):
    width = WIDE // GRID**2 + 1
    patches = torch.randn(40, 196, width, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(5)
    one = MiddleTokens(clip).reduced(patches)
    torch.manual_seed(6)
    other = MiddleTokens(clip)
    state = torch.get_rng_state()
    parts = torch.cat([other.reduced(patches[:1]), other.reduced(patches[1:])])
    assert one.shape == (40, NUMBERS) and torch.allclose(parts, one, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state), "no number is drawn from torch's own generator"
    pooled = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (14, 14)), GRID).flatten(2).transpose(1, 2)
    scale = (NUMBERS / (GRID**2 * width)) ** 0.5
    ratio = torch.pdist(one) / torch.pdist(pooled.flatten(1)) / scale
    assert ratio.min() > 0.8 and ratio.max() < 1.2, "distances stay what they were"
