"""Image towers: what MUST needs of an architecture, in one small class for each kind.

The method is written for a CLIP Vision Transformer: patches, one of which can be replaced by a mask token before
positions are added, and a class token that becomes the image's feature. A tower class defines for another
architecture where its patches are, how tokens become the image's feature, and the feature of a single patch.

A new one is a class here, a case below, a tiny model in tests/method/model/tiny.py and a row in docs/models.md.
"""

from typing import Any, NoReturn

from must.base.errors import UserError
from must.method.model.towers.base import Tower, take

__all__ = ["Tower", "make_tower", "take"]

NEEDS_PATCHES = (
    "MUST masks single patches: it needs a Vision Transformer that cuts the image into patches (see docs/models.md)"
)
HIERARCHICAL = (
    "its layers merge places of the image (hierarchical), and MUST masks single patches, each of which must come out "
    "of the last layer (see docs/models.md)"
)
NAFLEX = "its images keep their shapes (NaFlex), and MUST's views are squares of one size; take a fixed resolution"


def make_tower(visual: Any) -> Tower:
    """The tower of an open_clip model's `visual`."""
    if hasattr(visual, "trunk"):
        return timm_tower(visual)
    if hasattr(visual, "class_embedding") and hasattr(visual, "conv1"):
        return clip_tower(visual)
    refuse(type(visual).__name__, HIERARCHICAL if hasattr(visual, "layer4") else NEEDS_PATCHES)


def clip_tower(visual: Any) -> Tower:
    from must.method.model.towers.clip_vit import ClipMeanTower, ClipTower, CocaTower

    name = "VisionTransformer"
    if visual.patch_size[0] != visual.patch_size[1] or visual.proj is None:
        refuse(name, "it has no square patches or no projection")
    check_grid(name, visual.image_size, visual.patch_size[0])
    if visual.attn_pool is not None:
        if visual.pool_type != "tok":
            refuse(name, f"its attentional pooling '{visual.attn_pool_type or visual.pool_type}' is not supported")
        return CocaTower(visual)
    if visual.pool_type == "avg":
        return ClipMeanTower(visual)
    if visual.pool_type != "tok":
        refuse(name, f"its pooling '{visual.pool_type}' is not supported")
    return ClipTower(visual)


def timm_tower(visual: Any) -> Tower:
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from must.method.model.towers.timm_vit import TimmTower

    trunk = visual.trunk
    name = f"{type(trunk).__name__} (timm)"
    if type(trunk) not in (VisionTransformer, Eva):
        sizes = {layer.get("reduction") for layer in getattr(trunk, "feature_info", ())}  # pixels per position
        refuse(name, NAFLEX if "naflex" in name.lower() else HIERARCHICAL if len(sizes) > 1 else NEEDS_PATCHES)
    embed = trunk.patch_embed
    if type(embed) is not PatchEmbed:
        refuse(name, f"its patches come from a convolutional stem ({type(embed).__name__}), not from single patches")
    if trunk.global_pool not in ("token", "avg", "map") or any(
        "pool" in child for child, _ in visual.head.named_children()
    ):
        refuse(name, f"its pooling '{trunk.global_pool}' is not supported")
    if getattr(trunk, "rope_mixed", False) or not all(
        isinstance(layer, nn.Identity) for layer in (trunk.patch_drop or nn.Identity(), embed.norm)
    ):
        refuse(name, "a variant of the architecture that is not supported")
    check_grid(name, embed.img_size, embed.patch_size[0])
    return TimmTower(visual)


def check_grid(name: str, image: tuple[int, int], patch: int) -> None:
    """Raises UserError: patches do not cover the image, which some models allow."""
    if image[0] % patch or image[1] % patch:
        refuse(
            name,
            f"its patches of {patch} pixels do not divide its image of {image[0]} pixels; use the variant with "
            f"{image[0] // patch * patch} pixels, if there is one",
        )


def refuse(name: str, reason: str) -> NoReturn:
    raise UserError(f"the image tower {name} cannot be trained: {reason}")
