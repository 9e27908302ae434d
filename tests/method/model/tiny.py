"""A tiny model of every architecture family, with random weights, as open_clip model folders; and the tiny CLIP in
transformers' format, written without transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from must.api.demo import find_assets
from must.config import ClassifierConfig
from must.method.model.classifier import TextClassifier, classifier

SIZE, PATCH, WIDTH, EMBED, LAYERS = 32, 8, 32, 24, 2
TEXTS = ["a photo of a zero.", "a two", "Three  birds"]
CLIP = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "head_width": 16}
TIMM = {"image_size": SIZE, "timm_model_pretrained": False}
COMMON = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2}


def register(name: str, kind: type, **settings: Any) -> None:
    """Makes a tiny model known to timm by this name."""

    def build(**options: Any) -> Any:
        pretrained, _ = options.pop("pretrained", False), options.pop("cache_dir", None)
        options["pretrained_cfg"] = options.get("pretrained_cfg") or {"input_size": (3, SIZE, SIZE)}
        return build_model_with_cfg(kind, "must_tiny", pretrained, **{**COMMON, **settings, **options})

    build.__name__ = name
    register_model(build)


ROTARY = {"use_rot_pos_emb": True, "use_post_transformer_norm": True}
POOLED = {"use_pre_transformer_norm": True, "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2.0, "use_fc_norm": False}
register("must_tiny_siglip", VisionTransformer, class_token=False)
register("must_tiny_gap", VisionTransformer, class_token=False, reg_tokens=2, dynamic_img_size=True, global_pool="avg")
register("must_tiny_token", VisionTransformer, pre_norm=True)
register("must_tiny_eva", Eva, swiglu_mlp=True, scale_mlp=True, **ROTARY)
register("must_tiny_pe", Eva, **ROTARY, **POOLED)


def timm(name: str, pool: str, projection: str | None = None, **more: Any) -> dict[str, Any]:
    return {**TIMM, "timm_model_name": f"must_tiny_{name}", "timm_pool": pool, "timm_proj": projection, **more}


OWN_TEXT = {"custom_text": True}
# family -> (embed_dim, vision_cfg, more of the model's configuration)
FAMILIES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "clip": (EMBED, CLIP, {"quick_gelu": True}),
    "clip, layer scale": (EMBED, {**CLIP, "ls_init_value": 0.1}, {}),
    "siglip": (WIDTH, timm("siglip", "map", "none"), {**OWN_TEXT, "init_logit_bias": -10.0, "init_logit_scale": 2.3}),
    "timm, mean": (EMBED, timm("gap", "", "linear"), {}),
    "timm, class token": (EMBED, timm("token", "token", timm_drop_path=0.1), OWN_TEXT),
    "eva": (EMBED, timm("eva", "token"), OWN_TEXT),
    "perception encoder": (EMBED, timm("pe", "map"), OWN_TEXT),
}


def model_config(family: str) -> dict[str, Any]:
    embed, vision, more = FAMILIES[family]
    text = {"context_length": 24, "vocab_size": 576, "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text, **more}


def named_model(config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes a configuration known to open_clip, until the test ends; returns its name."""
    (folder / "must-tiny.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(folder / "must-tiny.json")
    return "must-tiny"


def model_folder(family: str, folder: Path) -> str:
    """Writes a random model of a family; every weight is stirred, so that no zero or one hides a mistake."""
    folder.mkdir(parents=True)
    config = model_config(family)
    preprocess = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    if "timm_model_name" in config["vision_cfg"]:
        preprocess["resize_mode"] = "squash"
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    shutil.copy(find_assets() / "bpe.txt.gz", folder)
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name not in ("logit_scale", "logit_bias"):
                parameter += 0.02 * torch.randn_like(parameter)
    weights = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return str(folder)


def make_classifier(folder: Path, model: str = "", classes: str = "cat,dog", **values: Any) -> TextClassifier:
    """`must classifier` of the bundled model or another one; the file is c.safetensors in the folder."""
    given = {"classes": classes, "model": model or str(find_assets()), "output": str(folder / "c.safetensors")}
    return classifier(ClassifierConfig(**{**given, **values}))


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
    write_tokenizer(open_clip.SimpleTokenizer(str(find_assets() / "bpe.txt.gz"), context_length=24), target)
    prepared = {"size": {"shortest_edge": SIZE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (target / "preprocessor_config.json").write_text(json.dumps(prepared))
    return target
