"""A tiny model of every architecture family, with random weights, as open_clip model folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from must.api.demo import find_assets
from must.config import ClassifierConfig
from must.model.classifier import TextClassifier, classifier

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
