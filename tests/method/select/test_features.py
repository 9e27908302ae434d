"""What the blocks of the frozen tower say of an image: the same for every batch, family of towers and process."""

import pytest
import torch
import torch.nn.functional as F
from must.method.select import features as module
from must.method.select.features import PROJECTED_SIZE, BlockTokens, ImageFeatures

from must.method.model.backbone import load_backbone
from must.method.model.masked_vit import MaskedViT
from must.method.model.towers import tower_of
from tests.method.model.tiny import FAMILIES, LAYERS, PATCH, SIZE, WIDTH, model_folder

PATCHES = (SIZE // PATCH) ** 2


def network(folder):
    torch.manual_seed(1)
    visual = load_backbone(folder, "", with_tokenizer=False).clip.visual
    return MaskedViT(visual, F.normalize(torch.randn(tower_of(visual).embed, 3), dim=0)).eval()


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def features_of(model, batches):
    tokens, found = BlockTokens(model), []
    for batch in batches:
        with tokens:
            model(batch)
            found.append(tokens.take())
    return torch.cat(found)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return network(model_folder("clip", tmp_path_factory.mktemp("models") / "clip"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_towers_has_features(family, tmp_path):
    model, pixels = network(model_folder(family, tmp_path / "model")), images(5)
    found = features_of(model, [pixels])
    assert found.shape[0] == 5 and found.shape[1] >= (LAYERS - 1) * PATCHES * WIDTH and torch.isfinite(found).all()
    assert torch.pdist(found).min() > 1e-3, "different images look different"
    with torch.inference_mode():
        before = model(pixels)
        with BlockTokens(model):
            assert torch.equal(model(pixels), before), "looking on changes nothing"


def test_they_are_the_tokens_after_every_block_that_is_called(clip):
    """Of CLIP's own towers the last block is computed in part, for the class token alone."""
    caught = []
    hooks = [block.register_forward_hook(lambda _, __, output: caught.append(output)) for block in clip.tower.blocks]
    found = features_of(clip, [images(2)])
    for hook in hooks:
        hook.remove()
    expected = [part for block in caught for part in (block[:, :1].flatten(1), clip.tower.patches(block).flatten(1))]
    assert torch.equal(found, torch.cat(expected, 1).float())


@pytest.mark.parametrize("wide", [module.MAX_SIZE, 8])
def test_batches_and_torchs_generator_make_no_difference(clip, monkeypatch, wide):
    """Also where the numbers are pooled and projected, by a matrix that is always the same."""
    monkeypatch.setattr(module, "MAX_SIZE", wide)
    monkeypatch.setattr(module, "PROJECTED_SIZE", 4 if wide == 8 else PROJECTED_SIZE)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = features_of(clip, [images(7)])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    for size in (1, 3):
        assert torch.allclose(features_of(clip, images(7).split(size)), whole, atol=1e-4)
    assert (whole.shape[1] == 4) == (wide == 8)


def test_the_parts_of_processes_are_joined_in_the_images_order():
    def part(*numbers):
        values = torch.tensor(numbers)
        return ImageFeatures(values, values[:, None].half(), values[None, :, None].half(), [str(n) for n in numbers])

    found = ImageFeatures.joined([part(0, 4), part(1, 3)])
    assert (
        found.numbers.tolist() == found.features[:, 0].tolist() == found.probabilities[0, :, 0].tolist() == [0, 1, 3, 4]
    )
    assert found.sources == ["0", "1", "3", "4"]
