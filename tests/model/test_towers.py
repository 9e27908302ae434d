"""Every architecture family: what the method needs of it, on tiny models with random weights."""

import copy
import fnmatch
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from must.base.parameters import load
from must.config import ClassifierConfig, ExportConfig, TrainConfig
from must.exporting.export import export
from must.model.backbone import build_visual, check_tower, load_backbone, read_config, select_architecture
from must.model.bundle import load_bundle
from must.model.classifier import classifier
from must.model.description import load_description
from must.model.masked_vit import MaskedViT
from must.training.step import build_optimizer
from must.training.trainer import train
from tests.common import ROOT, one_line
from tests.model.tiny import FAMILIES, LAYERS, SIZE, model_config, model_folder

FAMILY = pytest.mark.parametrize("family", FAMILIES)
PATCH_POOLED = ("siglip", "timm, mean", "perception encoder")


def tiny(family):
    torch.manual_seed(0)
    config = model_config(family)
    visual = build_visual({"quick_gelu": False, **config}).eval()
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return MaskedViT(visual, F.normalize(torch.randn(config["embed_dim"], 5), dim=0)).eval()


def images(count=2):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@FAMILY
def test_without_a_mask_it_is_open_clips_own_tower(family):
    model, pixels = tiny(family), images()
    with torch.no_grad():
        feature = F.normalize(model.visual(pixels), dim=-1)
        torch.testing.assert_close(model(pixels), 100 * feature @ model.classifier, atol=1e-3, rtol=1e-4)


class OtherAttention(nn.Module):
    """As open_clip's main branch has it: a tensor comes back, and not a pair."""

    def forward(self, x, attn_mask=None):
        return x


@pytest.mark.parametrize("block", [0, -1])
def test_attention_that_is_not_known_is_refused_and_not_misread(block):
    visual = build_visual({"quick_gelu": False, **model_config("clip")})
    visual.transformer.resblocks[block].attn = OtherAttention()
    message = r"attention of open_clip \d[\w.]+ \(OtherAttention\) .* 'open_clip_torch>=3,<4'"
    with pytest.raises(ValueError, match=message):
        MaskedViT(visual, torch.eye(model_config("clip")["embed_dim"]))


@FAMILY
def test_what_is_masked_is_not_seen_and_what_is_not_is(family):
    model, pixels = tiny(family), images()
    masked = torch.tensor([[0, 5, 15], [1, 2, 3]])
    hidden, shown = pixels.clone(), pixels.clone()
    for image, numbers in enumerate(masked.tolist()):
        for number in numbers:
            row, column = divmod(number, 4)
            hidden[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 7.0
    shown[:, :, 8:16, 0:8] = 7.0  # patch 4
    with torch.no_grad():
        before, same, other = (model(x, masked) for x in (pixels, hidden, shown))
    for ours, theirs, changed in zip(before, same, other, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ((ours - changed).abs() > 1e-5).any(-1).all()
    assert before.reconstruction.shape == (2, 3, 192) and before.alignment.shape == (2, 3)
    flat = torch.full_like(pixels, 0.5)  # of whose mean patch nothing is missed
    model.start_mask_token(flat[0])
    with torch.no_grad():
        torch.testing.assert_close(model(flat, masked).logits, model(flat), atol=1e-3, rtol=1e-4)


@FAMILY
def test_a_patch_that_is_all_there_is_has_the_images_feature(family):
    """With every token the same, the image's feature and every patch's local feature are the same vector."""
    model = tiny(family)
    tower = model.tower
    with torch.no_grad():
        tokens = tower.forward_tokens(images(), lambda patches: patches)
        tokens = tokens[:, 3:4].expand(-1, tokens.shape[1], -1)
        norm = tower.patch_norm()
        if family not in PATCH_POOLED:  # as published: it starts fresh; here it must be the tower's own
            norm = model.visual.trunk.norm if hasattr(model.visual, "trunk") else model.visual.ln_post
        local = tower.project_patches(norm(tower.patches(tokens)[:, :2]))
        torch.testing.assert_close(local[:, 1], tower.feature(tokens), atol=1e-5, rtol=1e-4)


@FAMILY
def test_every_parameter_learns_and_has_its_layer(family):
    model = tiny(family)
    output = model(images(), torch.tensor([[0, 1], [2, 3]]))
    (output.logits.logsumexp(-1).sum() + output.reconstruction.square().sum() + output.alignment.sum()).backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle, "DistributedDataParallel would wait for these for ever"
    layers = {name: model.find_layer(name) for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        block = re.search(r"blocks\.(\d+)\.", name)
        if block:
            assert layer == int(block.group(1)) + 1, name
    first = {name.removeprefix("visual.").removeprefix("trunk.").split(".")[0] for name in layers if layers[name] == 0}
    assert first <= {
        *("mask_token", "class_embedding", "positional_embedding", "conv1", "ln_pre"),
        *("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"),
    }
    assert {"classifier", "decoder.weight", "ln_patch.weight"} <= {n for n in layers if layers[n] == LAYERS + 1}
    scales = {group["lr_scale"] for group in build_optimizer(model, 0.5, 0.05).param_groups}
    assert scales == {0.5**power for power in range(LAYERS + 2)}


@FAMILY
def test_activation_checkpointing_gives_the_same_gradients(family):
    plain = tiny(family)
    sparing = copy.deepcopy(plain)
    sparing.tower.checkpointing = True
    gradients = []
    for model in (plain, sparing):
        output = model(images(), torch.tensor([[0, 1], [2, 3]]))
        (output.logits.logsumexp(-1).sum() + output.alignment.sum()).backward()
        gradients.append([p.grad for n, p in model.named_parameters() if not n.startswith("decoder")])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_ln_patch_starts_as_the_norm_that_a_patch_reading_head_knows():
    model = tiny("siglip")
    assert torch.equal(model.ln_patch.weight, model.visual.trunk.norm.weight)
    for family in ("clip", "eva"):
        assert torch.equal(tiny(family).ln_patch.weight, torch.ones(32))


@pytest.mark.slow
@FAMILY
def test_train_and_export(family, digits, tmp_path):
    model, text = model_folder(family, tmp_path / "model"), str(tmp_path / "classifier.safetensors")
    classes = str(Path(digits.shards).parent / "classes.yaml")
    made = classifier(ClassifierConfig(classes=classes, model=model, output=text))
    values = {"shards": digits.shards, "classifier": text, "output": str(tmp_path / "out"), "epochs": 1, "workers": 0}
    method = {"batch_size": 50, "mask_patch_size": 8, "logit_factor": "model", "lr": 1e-3, "confidence_threshold": 0.1}
    summary = train(load(TrainConfig, {**values, **method}))
    assert (summary.steps, summary.skipped_steps) == (3, 0)
    description = load_description(str(tmp_path / "out"))
    assert description.logit_factor == pytest.approx(made.logit_scale, rel=1e-6)
    bundle = load_bundle(str(tmp_path / "out"))
    zero_shot = MaskedViT(load_backbone(model).clip.visual, made.weights)
    assert not torch.equal(bundle.model.classifier, zero_shot.classifier)
    result = export(ExportConfig(model=str(tmp_path / "out"), output=str(tmp_path / "onnx"), shards=digits.shards))
    assert result["check"]["agreement"] == 1.0


def table() -> list[tuple[list[str], bool]]:
    """Rows of the family table: (patterns of names, whether they work)."""
    rows = []
    for line in (ROOT / "docs" / "models.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[3] in ("yes", "no"):
            rows.append((re.findall(r"`([^`]+)`", cells[2]), cells[3] == "yes"))
    return rows


def works(name: str) -> bool:
    with torch.device("meta"):
        try:
            visual = build_visual(select_architecture(read_config(name, name, {})))
            model = MaskedViT(visual, torch.empty(open_clip.get_model_config(name)["embed_dim"], 3)).eval()
        except ValueError as error:
            assert "cannot be trained" in str(error) and "\n" not in str(error)
            return False
        size = visual.image_size[0]
        output = model(torch.empty(2, 3, size, size), torch.zeros(2, 5, dtype=torch.int64))
    assert output.logits.shape == (2, 3) and output.alignment.shape == (2, 5)
    assert output.reconstruction.shape == (2, 5, 3 * model.patch_size**2)
    return True


def promised(name: str) -> bool:
    found = {verdict for patterns, verdict in table() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    assert len(found) == 1, f"{name} stands in docs/models.md {'twice' if found else 'nowhere'}"
    return found.pop()


@pytest.mark.parametrize(
    "name",
    [
        *("ViT-B-16-quickgelu", "ViT-bigG-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP2", "EVA02-B-16"),
        *("PE-Core-B-16", "ViT-SO400M-14-SigLIP-384", "RN50", "MobileCLIP-B", "vit_relpos_medium_patch16_cls_224"),
    ],
)
def test_real_architectures_are_what_the_table_says(name):
    """Built at full size without memory (torch's meta device): the layers and shapes are those of the real model."""
    assert works(name) is promised(name)


@pytest.mark.slow
def test_every_architecture_of_open_clip_is_what_the_table_says():
    kinds = {n: json.dumps(select_architecture(read_config(n, n, {}))["vision_cfg"]) for n in open_clip.list_models()}
    one_of_a_kind = {kind: name for name, kind in kinds.items()}  # names of one image tower share the answer
    answers = {kind: works(name) for kind, name in one_of_a_kind.items()}
    assert not [name for name, kind in kinds.items() if answers[kind] is not promised(name)]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("naflexvit_base_patch16_siglip", r"images keep their shapes \(NaFlex\).* take a fixed resolution"),
        ("hiera_tiny_224", r"merge places of the image \(hierarchical\)"),
        ("convnext_tiny", r"merge places of the image \(hierarchical\)"),
        ("vit_relpos_small_patch16_224", "needs a Vision Transformer that cuts"),
    ],
)
def test_towers_of_other_kinds_are_refused_in_words_that_fit(name, reason):
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    with one_line(f"^--model x: the image tower .* cannot be trained: .*{reason}"):
        check_tower("x", {"embed_dim": 8, "vision_cfg": vision, "quick_gelu": False})
