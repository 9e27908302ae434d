"""The weights of open_clip's CLIP under the names that transformers' CLIPModel and SiglipModel have, and back."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from must.base.errors import UserError

NAME_PAIRS = (  # patterns of open_clip's names, in this order, and what transformers says instead
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # their spelling
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
PARTS = re.compile(r"\.attn\.(in_proj_|qkv\.)(weight|bias)$")  # q, k and v in one tensor, which are three over there
TURNED = ("visual.proj", "text_projection")  # matrices that are stored the other way round
POOL = "visual.trunk.attn_pool."  # q in a tensor, k and v in another one, which are one over there
BUFFERS = re.compile(r"\.position_ids$")  # of older versions; not weights


def names_of(name: str) -> list[str]:
    """Where the tensor of open_clip's `name` is over there: in one tensor, or one after another in three."""
    parts = PARTS.search(name)
    names = [f"{name[: parts.start()]}.self_attn.{part}_proj.{parts[2]}" for part in "qkv"] if parts else [name]
    for pattern, theirs in NAME_PAIRS:
        names = [re.sub(pattern, theirs, one) for one in names]
    return names


def to_transformers(clip: nn.Module) -> dict[str, Tensor]:
    """The weights of open_clip's model for transformers."""
    ours = clip.state_dict()
    found: dict[str, Tensor] = {}
    for name, value in ours.items():
        names = names_of(name)
        if name.startswith(POOL + "kv."):
            continue
        if name.startswith(POOL + "q."):
            value = torch.cat([value, ours[name.replace(".q.", ".kv.")]])
        elif name in TURNED:
            value = value.T
        elif name == "visual.trunk.pos_embed":
            value = value[0]
        elif name == "visual.class_embedding":
            value = value.reshape(-1)
        elif name in ("logit_scale", "logit_bias"):
            value = value.reshape([1] if "logit_bias" in ours else [])
        found.update(zip(names, value.chunk(3) if len(names) > 1 else [value], strict=True))
    return found


def from_transformers(clip: nn.Module, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' weights for open_clip's model `clip`, which is not changed.

    Raises:
        ValueError: they are not all there, there are others, or of other shapes.
    """
    found, used = dict[str, Tensor](), set[str]()
    for name, like in clip.state_dict().items():
        names = names_of(name)
        missing = [one for one in names if one not in theirs]
        if missing:
            raise UserError(f"its weights have no {missing[0]}")
        used.update(names)
        value = torch.cat([theirs[one] for one in names]) if len(names) > 1 else theirs[names[0]]
        if name.startswith(POOL + "q."):
            value = value[: len(like)]
        elif name.startswith(POOL + "kv."):
            value = value[-len(like) :]
        elif name in TURNED:
            value = value.T
        if value.squeeze().shape != like.squeeze().shape:
            raise UserError(f"its {names[0]} is {list(value.shape)}, where config.json says {list(like.shape)}")
        found[name] = value.reshape(like.shape)
    others = [name for name in theirs if name not in used and not BUFFERS.search(name)]
    if others:
        raise UserError(f"its weights have {others[0]}, unknown to the architecture in config.json")
    return found
