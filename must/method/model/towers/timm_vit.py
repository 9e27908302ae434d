"""timm Vision Transformers inside open_clip: SigLIP and SigLIP2, Perception Encoder, EVA, and others of their kind.

Prefix tokens (class, registers) are optional; the head pools by class token, by mean or by attention."""

import copy
from collections.abc import Callable
from typing import Any

from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from must.method.model.towers import HIERARCHICAL, NEEDS_PATCHES, Tower, check_grid, refuse

NAFLEX = "its images keep their shapes (NaFlex), and MUST's views are squares of one size; take a fixed resolution"


class TimmTower(Tower):
    def __init__(self, visual: Any) -> None:
        self.visual, trunk = visual, visual.trunk
        self.width, self.patch = trunk.embed_dim, trunk.patch_embed.patch_size[0]
        self.embed = output_size(visual)
        self.blocks = trunk.blocks

    def forward_tokens(self, images: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        trunk = self.visual.trunk
        patches = trunk.patch_embed(images)
        grid = patches.shape[1:-1]  # [L], or [rows, columns] of towers that take images of any size
        patches = replace(patches.flatten(1, -2)).unflatten(1, grid)
        if isinstance(trunk, Eva):
            tokens, rotation = trunk._pos_embed(patches)
            return self.run(self.blocks, trunk.norm_pre(tokens), rope=rotation)
        return self.run(self.blocks, trunk.norm_pre(trunk._pos_embed(patches)))

    def patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.visual.trunk.num_prefix_tokens :]

    def feature(self, tokens: Tensor) -> Tensor:
        trunk = self.visual.trunk
        return self.visual.head(trunk.forward_head(trunk.norm(tokens)))

    def project_patches(self, normed: Tensor) -> Tensor:
        trunk = self.visual.trunk
        if trunk.attn_pool is not None:
            normed = trunk.attn_pool(normed.flatten(0, 1).unsqueeze(1)).unflatten(0, normed.shape[:2])
        if not isinstance(trunk.norm, nn.Identity):  # else ln_patch already is a copy of fc_norm
            normed = trunk.fc_norm(normed)
        return self.visual.head(trunk.head(normed))

    def patch_norm(self) -> nn.Module:
        trunk = self.visual.trunk
        norm = copy.deepcopy(trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm)
        if trunk.global_pool == "token":
            norm.reset_parameters()
        return norm


def output_size(visual: Any) -> int:
    """D, the size of the last linear layer after the trunk's features."""
    layers = [*visual.trunk.head.modules(), *visual.head.modules()]
    sizes = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    return sizes[-1] if sizes else visual.trunk.num_features


def timm_tower(visual: Any) -> Tower:
    trunk = visual.trunk
    name = f"{type(trunk).__name__} (timm)"
    if type(trunk) not in (VisionTransformer, Eva):
        sizes = {layer.get("reduction") for layer in getattr(trunk, "feature_info", ())}  # pixels per position
        refuse(name, NAFLEX if "naflex" in name.lower() else HIERARCHICAL if len(sizes) > 1 else NEEDS_PATCHES)
    embed = trunk.patch_embed
    if type(embed) is not PatchEmbed:
        refuse(name, f"its patches come from a convolutional stem ({type(embed).__name__}), not from single patches")
    pools_again = any("pool" in child for child, _ in visual.head.named_children())
    if pools_again or trunk.global_pool not in ("token", "avg", "map"):
        refuse(name, f"its pooling '{trunk.global_pool}' is not supported")
    if getattr(trunk, "rope_mixed", False) or not all(
        isinstance(layer, nn.Identity) for layer in (trunk.patch_drop or nn.Identity(), embed.norm)
    ):
        refuse(name, "a variant of the architecture that is not supported")
    check_grid(name, embed.img_size, embed.patch_size[0])
    return TimmTower(visual)
