"""`must export --to timm`: the image tower as a timm model whose "classes" are the numbers of the feature.

timm's heads are linear. CLIP's logits are not linear in what goes into the head: the feature is made unit in between.
So the model ends with the projection, and its user normalises and multiplies.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from must.base.errors import UserError
from must.config import ExportConfig
from must.data.image.preprocess import Preprocess
from must.deploy.export.check import features_of
from must.deploy.export.deployed import activation, is_standard
from must.deploy.export.model_card import usage
from must.method.model.bundle import Bundle, preprocess_of
from must.method.model.folder import save_weights
from must.method.model.towers.clip_vit import ClipMeanTower, ClipTower
from must.method.model.towers.timm_vit import TimmTower

WEIGHTS_NAME, CONFIG = "model.safetensors", "config.json"
NAMES_BY_SIZE = {  # (width, layers, heads): what timm calls it
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
    (1408, 40, 16): "giant",
    (1664, 48, 16): "gigantic",
}
BLOCK_NAMES = (
    ("transformer.resblocks.", "blocks."),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("ls_1.", "ls1."),
    ("ls_2.", "ls2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
EPSILONS = {1e-5: "vit_base_patch16_clip_224", 1e-6: "vit_base_patch16_224"}  # whose models have LayerNorms like that
USE = usage(
    "timm, torch, safetensors",
    'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # on a hub: "hf-hub:TEAM/NAME"\n'
    "preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    "feature = torch.nn.functional.normalize(model(preprocess(picture).unsqueeze(0)), dim=-1)",
)
MORE = """

The model's `num_classes` is {embed}, the size of the feature, and not the number of classes: a linear head cannot hold
the classifier, because the feature is made unit (`normalize`) between the projection and the text columns.

A timm without `local-dir:` takes the same file as

```python
timm.create_model("{name}", checkpoint_path="FOLDER/model.safetensors", {arguments})
```"""


def write(config: ExportConfig, bundle: Bundle, folder: Path) -> None:
    """Raises ValueError: a tower that timm has no model for."""
    tower, visual = bundle.model.tower, bundle.model.visual
    if isinstance(tower, TimmTower):
        name = bundle.description.architecture["vision_cfg"]["timm_model_name"]
        arguments, weights = from_trunk(visual)
        if "act_kwargs" in bundle.description.architecture["vision_cfg"]:
            arguments["act_layer"] = activation(tower.blocks[0])
    elif type(tower) in (ClipTower, ClipMeanTower):
        name, arguments, weights = from_clip(tower)
    else:
        refuse("its Vision Transformers have no attention pooling with several queries (CoCa)")
    kept = {key: value.detach().float().clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    save_weights(kept, folder / WEIGHTS_NAME, {"format": "pt"})
    embed = arguments["num_classes"]
    description = {
        "architecture": name,
        "num_classes": embed,
        "num_features": bundle.model.tower.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "must",
            "custom_load": False,
            "num_classes": embed,
            "pool_size": None,
            **preprocessing(preprocess_of(bundle.description)),
        },
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=1))


def preprocessing(preprocess: Preprocess) -> dict[str, Any]:
    """timm's words for it."""
    size = [3, preprocess.size, preprocess.size]
    return {
        "input_size": size,
        "fixed_input_size": True,
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash" if preprocess.resize_mode == "squash" else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }


def from_clip(tower: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(timm's name, its arguments, its weights) of open_clip's own VisionTransformer."""
    visual: Any = tower.visual
    block: Any = tower.blocks[0]
    norms = {module.eps for module in visual.modules() if isinstance(module, nn.LayerNorm)}
    standard = all(map(is_standard, tower.blocks)) and len(norms) == 1 and norms <= EPSILONS.keys()
    if not standard or not activation(block):
        refuse("its Vision Transformers have no blocks like this model's")
    width, heads = tower.width, block.attn.num_heads
    mean = type(tower) is ClipMeanTower
    quick = "quickgelu_" if activation(block) == "quick_gelu" else ""
    size = visual.image_size[0]
    likely = f"vit_{NAMES_BY_SIZE.get((width, len(tower.blocks), heads))}_patch{tower.patch}_clip_{quick}{size}"
    arguments = {
        "img_size": size,
        "patch_size": tower.patch,
        "embed_dim": width,
        "depth": len(tower.blocks),
        "num_heads": heads,
        "mlp_ratio": block.mlp.c_fc.out_features / width,
        "init_values": 1.0 if hasattr(block.ls_1, "gamma") else None,
        "pre_norm": not isinstance(visual.ln_pre, nn.Identity),
        "fc_norm": mean and visual.final_ln_after_pool,
        "act_layer": activation(block),
        "num_classes": tower.embed,
        "global_pool": "avg" if mean else "token",
    }
    norm = "fc_norm." if arguments["fc_norm"] else "norm."
    weights = {renamed(key, norm): value for key, value in visual.state_dict().items()}
    for key in ("cls_token", "pos_embed"):
        weights[key] = weights[key].reshape(1, -1, width)
    if not arguments["pre_norm"]:
        weights["patch_embed.proj.bias"] = torch.zeros(width)  # timm leaves it out where a LayerNorm follows
    return name_of(likely, norms.pop()), arguments, with_head(weights, visual.proj.T)


def name_of(likely: str, epsilon: float) -> str:
    import timm

    plain = EPSILONS[epsilon]
    return likely if "clip" in plain and timm.is_model(likely) else plain


def renamed(key: str, norm: str) -> str:
    names = {"class_embedding": "cls_token", "positional_embedding": "pos_embed", "proj": "proj"}
    if key in names:
        return names[key]
    if key.startswith("ln_post."):
        return norm + key.removeprefix("ln_post.")
    for theirs, timms in BLOCK_NAMES:
        key = key.replace(theirs, timms)
    return key


def with_head(weights: dict[str, Tensor], projection: Tensor) -> dict[str, Tensor]:
    """`projection` [D, W]. timm's heads have a bias, CLIP's projection has none."""
    weights.pop("proj", None)
    return {**weights, "head.weight": projection, "head.bias": torch.zeros(len(projection))}


def from_trunk(visual: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(timm's arguments, its weights) of a tower that is timm's already."""
    trunk, head = visual.trunk, dict(visual.head.named_children())
    weights = dict(trunk.state_dict())
    arguments: dict[str, Any] = {"global_pool": trunk.global_pool}
    if head.keys() - {"drop", "proj"}:
        refuse("the tower's head has more than one layer")
    if "proj" in head:
        weights = with_head(weights, head["proj"].weight)
        if head["proj"].bias is not None:
            weights["head.bias"] = head["proj"].bias
    has_head = "head.weight" in weights
    arguments["num_classes"] = len(weights["head.weight"]) if has_head else 0
    return arguments, weights


def refuse(reason: str) -> NoReturn:
    raise UserError(f"--to timm: {reason}")


def features(folder: Path, images: Tensor) -> Tensor:
    """timm's own, [N, D]."""
    import timm

    description = json.loads((folder / CONFIG).read_text())
    try:
        model = timm.create_model(
            description["architecture"], checkpoint_path=str(folder / WEIGHTS_NAME), **description["model_args"]
        ).eval()
    except Exception as error:  # of another shape, or an argument that this version does not know
        refuse(f"timm cannot build this model again ({' '.join(str(error).split())[:200]})")
    return features_of(model, images)


def use(bundle: Bundle, folder: Path) -> str:
    description = json.loads((folder / CONFIG).read_text())
    arguments = ", ".join(f"{name}={value!r}" for name, value in description["model_args"].items())
    return USE + MORE.format(name=description["architecture"], embed=description["num_classes"], arguments=arguments)
