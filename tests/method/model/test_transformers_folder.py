"""CLIPs in transformers' format: read without transformers, compared with it, and what cannot be read in one line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from must.api.demo import asset_folder
from must.config import ClassifierConfig
from must.data.augment.normalize import normalize
from must.data.image.preprocess import EvalView, Preprocess
from must.method.model import transformers_folder
from must.method.model.backbone import build_visual, load_backbone, tower_shape
from must.method.model.bundle import save_bundle, zero_shot_bundle
from must.method.model.classifier import TextClassifier, classifier, load_text_classifier
from tests.method.model.tiny import COMMON, made, model_config, model_folder, named_model

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None and not os.environ.get("REQUIRE_TRANSFORMERS"),
    reason="transformers is not installed; `make test-transformers` runs this",
)
SIZE = COMMON["img_size"]
TEXTS = ["a photo of a zero.", "a two", "Three  birds"]


@register_model
def vit_tiny_patch8_siglip_32(**options: Any) -> VisionTransformer:
    return made(VisionTransformer, options, class_token=False, global_pool="map")


@pytest.fixture(autouse=True)
def tiny_siglip(monkeypatch):
    monkeypatch.setitem(transformers_folder.SIGLIPS, (32, 2, 2, 128), "tiny")


def blocks(state: dict[str, torch.Tensor], ours: str, theirs: str) -> dict[str, torch.Tensor]:
    """The names are written here, and not asked of the code that is tested."""
    found = {}
    for number in range(sum(name.startswith(ours) and name.endswith("ln_1.bias") for name in state)):
        one, other = f"{ours}.{number}", f"{theirs}.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            q, k, v = state[f"{one}.attn.in_proj_{kind}"].chunk(3)
            found |= {f"{other}.self_attn.{x}_proj.{kind}": y.clone() for x, y in (("q", q), ("k", k), ("v", v))}
            found[f"{other}.self_attn.out_proj.{kind}"] = state[f"{one}.attn.out_proj.{kind}"]
            found[f"{other}.layer_norm1.{kind}"] = state[f"{one}.ln_1.{kind}"]
            found[f"{other}.layer_norm2.{kind}"] = state[f"{one}.ln_2.{kind}"]
            found[f"{other}.mlp.fc1.{kind}"] = state[f"{one}.mlp.c_fc.{kind}"]
            found[f"{other}.mlp.fc2.{kind}"] = state[f"{one}.mlp.c_proj.{kind}"]
    return found


def write_tokenizer(tokenizer: open_clip.SimpleTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt as transformers writes them."""
    renamed = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    vocabulary = {renamed.get(number, word): number for word, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def by_hand(folder: Path, target: Path) -> Path:
    """The tiny CLIP of an open_clip folder as transformers would have saved it."""
    target.mkdir()
    state = load_file(folder / "open_clip_model.safetensors")
    image, text = "vision_model", "text_model"
    theirs = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
        f"{image}.embeddings.class_embedding": state["visual.class_embedding"],
        f"{image}.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{image}.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        f"{image}.embeddings.position_ids": torch.arange(17)[None],
        f"{text}.embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{text}.embeddings.position_embedding.weight": state["positional_embedding"],
        **blocks(state, "visual.transformer.resblocks", image),
        **blocks(state, "transformer.resblocks", text),
    }
    norms = {"visual.ln_pre": f"{image}.pre_layrnorm", "visual.ln_post": f"{image}.post_layernorm"}
    for ours, other in {**norms, "ln_final": f"{text}.final_layer_norm"}.items():
        theirs |= {f"{other}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    save_file(theirs, target / "model.safetensors", {"format": "pt"})
    shape = {"hidden_size": 32, "num_attention_heads": 2}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {
            **shape, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 576,
            "max_position_embeddings": 24, "eos_token_id": 2,
        },
        "vision_config": {"image_size": 224, "num_hidden_layers": 2},
        "vision_config_dict": {**shape, "intermediate_size": 128, "image_size": SIZE, "patch_size": 8},
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    write_tokenizer(open_clip.SimpleTokenizer(str(asset_folder() / "bpe.txt.gz"), context_length=24), target)
    prepared = {"size": {"shortest_edge": SIZE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (target / "preprocessor_config.json").write_text(json.dumps(prepared))
    return target


@pytest.fixture
def ours(tmp_path):
    return Path(model_folder("clip", tmp_path / "ours"))


@pytest.fixture
def folder(ours, tmp_path):
    return by_hand(ours, tmp_path / "theirs")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in found.items())


def classified(folder: Path) -> tuple[TextClassifier, str]:
    """(a classifier of a model folder, its file)."""
    values = {"classes": "cat,dog", "model": str(folder), "output": str(folder.with_name("c.safetensors"))}
    return classifier(ClassifierConfig(**values, device="cpu")), values["output"]


def test_the_classifier_keeps_it_as_a_model_folder(folder):
    kept, _ = classified(folder)
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
    assert torch.equal(one, other)
    assert tower_shape(str(folder), "") == (32, SIZE, 8)


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
    with pytest.raises(
        ValueError, match=r"^--model \S+: is a file; give its folder, .* --model NAME --pretrained FILE$"
    ):
        load_backbone(str(folder / "model.safetensors"))
    bundle = zero_shot_bundle(classified(folder)[0])
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


# -- beside transformers --
SMALL = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "quick gelu": ("clip", {}, {}),
    "gelu": ("clip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "gelu of tanh, eps": ("clip", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}, {"hidden_act": "gelu"}),
    "odd mlp": ("clip", {"intermediate_size": 101}, {"intermediate_size": 67}),
    "pooled by the highest": ("clip", {}, {"eos_token_id": 2}),
    "pooled by the end": ("clip", {}, {"eos_token_id": 575, "vocab_size": 600}),
    "siglip": ("siglip", {}, {}),
    "siglip, exact gelu": ("siglip", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "siglip, a margin": ("siglip", {"image_size": 37}, {"hidden_act": "gelu"}),
}


def saved_by_transformers(kind: str, image: dict[str, Any], text: dict[str, Any], folder: Path, **more: Any) -> Any:
    """transformers' own model with random weights, its tokenizer and its preprocessing, as it saves them."""
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=image, **more)
        model: Any = transformers.CLIPModel(config)
        side = image["image_size"]
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=image))
        side = image["image_size"] // image["patch_size"] * image["patch_size"]
        processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    with torch.no_grad():  # they start with zero biases, and one logit for all
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.0)
    model.save_pretrained(folder, max_shard_size="800MB")
    processor.save_pretrained(folder)
    return model.eval()


def tokenizer_beside(kind: str, folder: Path, scratch: Path) -> None:
    import transformers

    scratch.mkdir()
    if kind == "clip":
        words = open_clip.SimpleTokenizer(str(asset_folder() / "bpe.txt.gz"), context_length=24)
        write_tokenizer(words, scratch)
        transformers.CLIPTokenizer.from_pretrained(scratch).save_pretrained(folder)
        return
    import sentencepiece

    (scratch / "text.txt").write_text("\n".join([*TEXTS, *open_clip.IMAGENET_CLASSNAMES]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(scratch / "text.txt"), model_prefix=str(scratch / "spiece"), vocab_size=500, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    transformers.SiglipTokenizer(str(scratch / "spiece.model"), model_max_length=24).save_pretrained(folder)


def logits_of_transformers(model: Any, folder: Path) -> torch.Tensor:
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    tokens = words(TEXTS, padding="max_length", max_length=length, return_tensors="pt")
    prepare = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = prepare(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], pixel_values=at(pixels, model)).logits_per_image


def at(pixels: torch.Tensor, model: Any) -> torch.Tensor:
    """The margin that no patch covers is there, of anything."""
    more = model.config.vision_config.image_size - pixels.shape[-1]
    return F.pad(pixels, (0, more, 0, more), value=3.0) if more > 0 else pixels


def logits_of_ours(folder: Path) -> torch.Tensor:
    found = load_backbone(str(folder))
    pixels = normalize(torch.tensor(EvalView(found.preprocess)(picture())[None]), found.preprocess)
    with torch.no_grad():
        return found.clip.get_logits(pixels, found.tokenizer(TEXTS))[0]


def picture() -> Image.Image:
    """As many pixels are cut off on both sides: torchvision rounds half a pixel up, transformers down."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


def made_by_transformers(name: str, tmp_path: Path) -> tuple[Any, Path]:
    kind, image, text = KINDS[name]
    image = {**SMALL, "image_size": SIZE, "patch_size": 8, **image}
    end = {"bos_token_id": 574, "eos_token_id": 575} if kind == "clip" else {}
    text = {**SMALL, "vocab_size": 576, "max_position_embeddings": 24, **end, **text}
    model = saved_by_transformers(kind, image, text, tmp_path / "saved", projection_dim=24)
    tokenizer_beside(kind, tmp_path / "saved", tmp_path / "scratch")
    return model, tmp_path / "saved"


@needs_transformers
@pytest.mark.parametrize("name", KINDS)
def test_the_logits_are_transformers_own(name, tmp_path, record_property):
    model, folder = made_by_transformers(name, tmp_path)
    expected, found = logits_of_transformers(model, folder), logits_of_ours(folder)
    difference = (found - expected).abs().max().item()
    record_property("largest difference of a logit", difference)
    assert difference < 1e-4 and expected.std() > 0.01
    kept, _ = classified(folder)
    shutil.rmtree(folder)
    torch.testing.assert_close(logits_of_ours(Path(kept.model_folder)), found, atol=1e-5, rtol=0)
    again = load_backbone(kept.model_folder)
    visual = build_visual(again.architecture).eval()
    visual.load_state_dict(again.clip.visual.state_dict())
    with torch.no_grad():
        pixels = torch.randn(2, 3, SIZE, SIZE)
        torch.testing.assert_close(visual(pixels), again.clip.encode_image(pixels), atol=1e-6, rtol=0)


def sizes(shape: tuple[int, int, int, int], **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, shape, strict=True)) | more


def seen(shape: tuple[int, int, int, int], pixels: int, patch: int) -> dict[str, Any]:
    return sizes(shape, image_size=pixels, patch_size=patch)


BASE, LARGE, SO400M, HUGE = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1152, 27, 16, 4304), (1280, 32, 16, 5120)
OPENAI_TEXT, LARGE_TEXT = sizes((512, 12, 8, 2048)), sizes((768, 12, 12, 3072))
LAION = {"hidden_act": "gelu"}
REAL: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "ViT-B/32": ("clip", seen(BASE, 224, 32), OPENAI_TEXT, 512),
    "ViT-B/16": ("clip", seen(BASE, 224, 16), OPENAI_TEXT, 512),
    "ViT-L/14": ("clip", seen(LARGE, 224, 14), LARGE_TEXT, 768),
    "ViT-L/14, 336 pixels": ("clip", seen(LARGE, 336, 14), LARGE_TEXT, 768),
    "ViT-H/14": ("clip", seen(HUGE, 224, 14) | LAION, sizes(LARGE) | LAION, 1024),
    "SigLIP base/16": ("siglip", seen(BASE, 224, 16), sizes(BASE, vocab_size=32000), 768),
    "SigLIP 2 base/32": ("siglip", seen(BASE, 256, 32), sizes(BASE, vocab_size=256000), 768),
    "SigLIP large/16": ("siglip", seen(LARGE, 384, 16), sizes(LARGE, vocab_size=32000), 1024),
    "SigLIP so400m/14": ("siglip", seen(SO400M, 384, 14), sizes(SO400M, vocab_size=32000), 1152),
    "SigLIP 2 so400m/16": ("siglip", seen(SO400M, 256, 16), sizes(SO400M, vocab_size=256000), 1152),
}


@needs_transformers
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", REAL if os.environ.get("REQUIRE_FULL_SIZE") else ["ViT-B/32", "SigLIP base/16"])
def test_the_logits_are_transformers_own_at_full_size(name, tmp_path, record_property):
    kind, image, text, projection = REAL[name]
    folder = tmp_path / "saved"
    model = saved_by_transformers(kind, image, text, folder, projection_dim=projection)
    tokenizer_beside(kind, folder, tmp_path / "scratch")
    if kind == "clip":
        for path in folder.glob("token*"):
            path.unlink()
        write_tokenizer(open_clip.SimpleTokenizer(), folder)
    expected = logits_of_transformers(model, folder)
    del model
    found = logits_of_ours(folder)
    difference = (found - expected).abs().max().item()
    record_property("logits", str(expected.tolist()))
    record_property("largest difference of a logit", difference)
    assert difference < 1e-4 and expected.std() > 0.01
