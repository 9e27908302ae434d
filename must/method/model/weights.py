"""The weights of a CLIP: read from a checkpoint of any training program, and renamed from transformers."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from must.base.errors import UserError
from must.base.text import abbreviate
from must.method.model.transformers_folder import WEIGHT_FILES, read

NAME_PAIRS = (  # patterns of open_clip's names, in this order, and transformers' names instead
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # the spelling of transformers
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.trunk\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.trunk\.blocks\.", "vision_model.encoder.layers."),
    (r"^visual\.trunk\.norm\.", "vision_model.post_layernorm."),
    (r"^visual\.trunk\.attn_pool\.latent$", "vision_model.head.probe"),
    (r"^visual\.trunk\.attn_pool\.q\.", "vision_model.head.attention.in_proj_"),
    (r"^visual\.trunk\.attn_pool\.kv\.", "vision_model.head.attention.in_proj_"),
    (r"^visual\.trunk\.attn_pool\.proj\.", "vision_model.head.attention.out_proj."),
    (r"^visual\.trunk\.attn_pool\.norm\.", "vision_model.head.layernorm."),
    (r"^visual\.trunk\.attn_pool\.mlp\.", "vision_model.head.mlp."),
    (r"^text\.text_projection\.", "text_model.head."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^(text\.)?positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^(text\.)?token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^(text\.)?ln_final\.", "text_model.final_layer_norm."),
    (r"^(text\.)?transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.(ln_|norm)(?=[12]\.)", ".layer_norm"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.(out_)?proj\.", ".self_attn.out_proj."),
)
JOINED_PARTS = re.compile(r"\.attn\.(in_proj_|qkv\.)(weight|bias)$")  # q, k and v in one tensor; three in transformers
TRANSPOSED = ("visual.proj", "text_projection")  # matrices that are stored transposed
POOL = "visual.trunk.attn_pool."  # q in one tensor, k and v in another; one tensor in transformers
BUFFERS = re.compile(r"\.position_ids$")  # buffers of older versions, not weights
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # averaged weights are preferred
WEIGHT_KEYS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module")
ANCHOR = "logit_scale"  # every CLIP has it: the text before it is the prefix of all names


def list_transformers_names(name: str) -> list[str]:
    """The transformers names of open_clip's tensor `name`: one, or three whose tensors are concatenated."""
    parts = JOINED_PARTS.search(name)
    names = [f"{name[: parts.start()]}.self_attn.{part}_proj.{parts[2]}" for part in "qkv"] if parts else [name]
    for pattern, replacement in NAME_PAIRS:
        names = [re.sub(pattern, replacement, part_name) for part_name in names]
    return names


def rename_weights(clip: nn.Module, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' weights `source`, renamed for open_clip's model `clip`, which is not changed."""
    weights, used = dict[str, Tensor](), set[str]()
    for name, target in clip.state_dict().items():
        names = list_transformers_names(name)
        missing = [source_name for source_name in names if source_name not in source]
        if missing:
            raise UserError(f"its weights have no {missing[0]}")
        used.update(names)
        value = torch.cat([source[source_name] for source_name in names]) if len(names) > 1 else source[names[0]]
        if name.startswith(POOL + "q."):
            value = value[: len(target)]
        elif name.startswith(POOL + "kv."):
            value = value[-len(target) :]
        elif name in TRANSPOSED:
            value = value.T
        if value.squeeze().shape != target.squeeze().shape:
            raise UserError(f"its {names[0]} is {list(value.shape)}, where config.json says {list(target.shape)}")
        weights[name] = value.reshape(target.shape)
    others = [name for name in source if name not in used and not BUFFERS.search(name)]
    if others:
        raise UserError(f"its weights have {others[0]}, unknown to the architecture in config.json")
    return weights


def read_file(file: Path, mmap: bool = False) -> Any:
    """The content of a file of safetensors or torch."""
    if file.suffix == ".safetensors":
        return load_file(file)
    with torch.serialization.safe_globals([argparse.Namespace]):  # programs store their arguments as one
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's weights, by transformers' names."""
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"no {WEIGHT_FILES[0]} in this folder")
    files = [name]
    if name.endswith(".index.json"):
        files = sorted(set((read(folder / name).get("weight_map") or {}).values()))
    weights: dict[str, Tensor] = {}
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"no {abbreviate(file)} in this folder, which {name} names")
        try:
            weights |= read_file(folder / file, mmap=True)
        except Exception as error:
            raise UserError(f"its {file} is damaged ({type(error).__name__})") from error
    return weights


def find_weights(file: Path) -> tuple[dict[str, Tensor], str] | None:
    """(the model's weights, the name of the entry they were under); None for a file that is left to open_clip.

    The weights have open_clip's names or those of transformers."""
    try:
        content = read_file(file)
    except Exception:  # numpy arrays, TorchScript, or damaged: open_clip reports it
        return None
    keys = []
    while isinstance(content, dict):
        key = next((key for key in WEIGHT_KEYS if isinstance(content.get(key), dict) and content[key]), None)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    if not isinstance(content, dict):
        return None
    anchors = [name for name in content if isinstance(name, str) and name.endswith(ANCHOR)]
    prefix = min(anchors, key=len).removesuffix(ANCHOR) if anchors else ""
    weights = {
        name.removeprefix(prefix): value
        for name, value in content.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    return weights, ".".join(keys)


def describe_weights_problem(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """One line that says why weights do not fit a model; '' if they do."""
    missing = [name for name in expected if name not in weights]
    others = [name for name in weights if name not in expected]
    shapes = [name for name in expected if name in weights and expected[name].shape != weights[name].shape]
    if shapes:
        name, count = shapes[0], f"{len(shapes)} of {len(expected)}"
        shape, expected_shape = list(weights[name].shape), list(expected[name].shape)
        return f"it is of another model: {count} tensors have other shapes ({name} has {shape}, not {expected_shape})"
    counts = [f"lacks {len(missing)} of {len(expected)} tensors ({missing[0]})"] if missing else []
    counts += [f"has {len(others)} others ({others[0]})"] if others else []
    return f"it is of another model: {' and '.join(counts)}" if counts else ""
