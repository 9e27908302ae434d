"""CLIPs in transformers' format: read without transformers, and what cannot be read in one line."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from must.data.image.preprocess import Preprocess
from must.method.model.backbone import find_tower_shape, load_backbone
from must.method.model.bundle import make_zero_shot_bundle, save_bundle
from must.method.model.classifier import load_text_classifier
from tests.method.model.tiny import SIZE, TEXTS, by_hand, make_classifier, model_config, model_folder, named_model
from tests.method.train.lives import same


@pytest.fixture
def ours(tmp_path):
    return Path(model_folder("clip", tmp_path / "ours"))


@pytest.fixture
def folder(ours, tmp_path):
    return by_hand(ours, tmp_path / "theirs")


def test_the_classifier_keeps_it_as_a_model_folder(folder):
    kept = make_classifier(folder.parent, str(folder))
    shutil.rmtree(folder)
    found = load_backbone(kept.model_folder)
    assert (Path(kept.model_folder) / "bpe.txt.gz").is_file()
    assert found.tokenizer(["a cat"]).shape == (1, 24)


def in_pieces(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def one_tokenizer_file(folder: Path) -> None:
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    words = json.loads((folder / "vocab.json").read_text())
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": words, "merges": [line.split() for line in merges]}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "vocab.json").unlink()


@pytest.mark.parametrize("layout", [lambda folder: None, in_pieces, pickled, one_tokenizer_file])
def test_a_folder_of_transformers_is_the_same_model(ours, folder, layout):
    layout(folder)
    given, found = load_backbone(str(ours)), load_backbone(str(folder))
    assert same(found.clip.state_dict(), given.clip.state_dict())
    assert torch.equal(found.tokenizer(TEXTS), given.tokenizer(TEXTS))
    expected = Preprocess(size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")
    assert found.preprocess == expected
    pixels = torch.randn(2, 3, SIZE, SIZE)
    one, other = (each.clip.get_logits(pixels, each.tokenizer(TEXTS))[0] for each in (found, given))
    torch.testing.assert_close(one, other)
    assert find_tower_shape(str(folder), "") == (32, SIZE, 8)


def changed(folder: Path, name: str = "config.json", **values: Any) -> None:
    found = json.loads((folder / name).read_text())
    for key, value in values.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) else value
    (folder / name).write_text(json.dumps(found))


def besides(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "more.weight": torch.ones(2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: changed(f, architectures=["BlipModel"], model_type="blip"), "names .?BlipModel.?; CLIPM"),
        (lambda f: changed(f, architectures=["CLIPVisionModel"]), ".a part of a CLIP.; save"),
        (lambda f: changed(f, architectures=["Siglip2Model"], model_type="siglip2"), "SigLIP 2 NaFlex.*fixed resolut"),
        (lambda f: (f / "config.json").write_text('{"architecture": "vit_x", "pretrained_cfg": {}}'), "tower of timm"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: changed(f, text_config=5), "config.json is damaged"),
        (lambda f: changed(f, text_config={"hidden_act": "relu"}), "its activation .?relu.? is none of gelu, "),
        (lambda f: changed(f, text_config={"hidden_act": "gelu"}), "towers have the activations quick_gelu and gelu"),
        (lambda f: changed(f, vision_config_dict={"patch_size": 16}), r"_embedding.weight is \[17, 32\], w"),
        (lambda f: changed(f, vision_config_dict={"num_hidden_layers": 3}), "have no vision_model.encoder.la"),
        (lambda f: changed(f, "preprocessor_config.json", resample=0), "neither bicubic nor bilinear"),
        (besides, "its weights have more.weight, unknown to the architecture"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter .LoRA. without its model; save"),
        (lambda f: (f / "config.json").unlink(), "no open_clip_config.json in this folder, nor config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors in this folder"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 20), "model.safetensors is damaged"),
        (lambda f: (f / "vocab.json").unlink(), "has no tokenizer: "),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(str(folder))
    assert str(error.value).startswith(f"--model {folder}: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(folder))


def test_a_file_where_its_folder_is_meant(folder, tmp_path):
    message = r"^--model \S+: is a file; give its folder, .* --model NAME --pretrained FILE$"
    with pytest.raises(ValueError, match=message):
        load_backbone(str(folder / "model.safetensors"))
    bundle = make_zero_shot_bundle(make_classifier(tmp_path, str(folder)))
    save_bundle(str(tmp_path / "bundle"), bundle.model, bundle.description)
    for place in (folder, tmp_path / "bundle"):
        with pytest.raises(ValueError, match=f"is a part of a model; give its folder, {place}$"):
            load_text_classifier(str(place / "model.safetensors"))
    message = "is a bundle, an image tower without a text tower; `must export --to open_clip` makes a model$"
    with pytest.raises(ValueError, match=message):
        load_backbone(str(tmp_path / "bundle"))


@pytest.fixture
def named(ours, monkeypatch):
    """The tiny model by a name of open_clip's."""
    return named_model(model_config("clip"), ours.parent, monkeypatch)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s, _: {"epoch": 3, "state_dict": prefixed(s, "module."), "optimizer": {"state": {}, "param_groups": []}},
        lambda s, _: {"model": prefixed(s, "_orig_mod."), "args": argparse.Namespace(lr=1.0), "loss": 0.5},
        lambda s, _: {"state_dict": {**prefixed(s, "model.clip."), "head.weight": torch.ones(3)}},
        lambda s, _: {"ema": {"n_averaged": torch.tensor(7), **prefixed(s, "module.")}, "model": prefixed(s, "x.")},
        lambda s, _: {"state_dict": {"x": torch.ones(1)}, "state_dict_ema": prefixed(s, "module._orig_mod.")},
        lambda _, theirs: {"model": theirs},
    ],
)
def test_checkpoints_of_training_programs(ours, folder, named, tmp_path, wrapped):
    """Also with transformers' names."""
    expected = load_file(ours / "open_clip_model.safetensors")
    torch.save(wrapped(expected, load_file(folder / "model.safetensors")), tmp_path / "trained.pt")
    assert same(load_backbone(named, str(tmp_path / "trained.pt"), with_tokenizer=False).clip.state_dict(), expected)


def test_a_checkpoint_of_another_model_is_one_short_line(ours, named, tmp_path):
    state = load_file(ours / "open_clip_model.safetensors")
    wider = {name: torch.ones(5, *value.shape[1:]) if "ln_" in name else value for name, value in state.items()}
    for weights, message in (
        (wider, r"it is of another model: 18 of 50 tensors .*shapes \(visual.ln_pre.weight has \[5\], not \[32\]"),
        ({"fc.weight": torch.ones(3)}, r"lacks 50 of 50 tensors \(positional_.*\) and has 1 others \(fc.weight\)"),
    ):
        torch.save(weights, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=f"other.pt: cannot be loaded: .*{message}") as error:
            load_backbone(named, str(tmp_path / "other.pt"), with_tokenizer=False)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200 + len(str(tmp_path))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))  # OpenAI's own file is a program
    with pytest.raises(ValueError, match=r"ViT-B-16.pt: is a TorchScript program, .* --pretrained openai"):
        load_backbone(named, str(tmp_path / "ViT-B-16.pt"), with_tokenizer=False)


BLOCK = {
    "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight",
    "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias",
}  # fmt: skip
OPENAI = {
    "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
    "ln_final.bias", "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight",
    "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
}  # fmt: skip


def test_the_names_are_openais_and_laions_training_checkpoints_give_them_too(ours, named, tmp_path):
    """Half precision, as OpenAI's file has it."""
    state = {name: value.half() for name, value in load_file(ours / "open_clip_model.safetensors").items()}
    blocks = [f"visual.transformer.resblocks.{n}." for n in (0, 1)] + ["transformer.resblocks.0."]
    assert state.keys() == OPENAI | {prefix + name for prefix in blocks for name in BLOCK}
    for number, content in enumerate((state, {"epoch": 32, "name": "run", "state_dict": prefixed(state, "module.")})):
        torch.save(content, tmp_path / f"{number}.pt")
        found = load_backbone(named, str(tmp_path / f"{number}.pt"), with_tokenizer=False).clip.state_dict()
        assert same(found, {name: value.float() for name, value in state.items()})
