"""open_clip's own VisionTransformer: with a class token (OpenAI, LAION, ...), mean (CLIPA) or attention pool (CoCa)."""

import copy
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from must.base.parameters import require
from must.method.model.attention import SelfAttention, attended, is_residual
from must.method.model.towers import Tower, check_grid, refuse, take


class ClipTower(Tower):
    """Class token, as in the paper."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.width, self.embed, self.patch = visual.conv1.out_channels, visual.output_dim, visual.patch_size[0]
        self.blocks = visual.transformer.resblocks
        visual.output_tokens = False  # CoCa's towers return all tokens besides the feature
        for block in filter(is_residual, self.blocks):  # `forward_features` computes the last block itself
            require_attention(block.attn)

    def forward_tokens(self, images: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        return self.run(self.blocks, self.embedded(images, replace))

    def embedded(self, images: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        """The input of the first block."""
        visual = self.visual
        patches = replace(visual.conv1(images).flatten(2).transpose(1, 2))
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return visual.ln_pre(tokens)

    def forward_features(
        self, images: Tensor, replace: Callable[[Tensor], Tensor], masked: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if not self.reads_class_token:
            return super().forward_features(images, replace, masked)
        tokens = self.run(self.blocks[:-1], self.embedded(images, replace))
        # Only the class token and the masked patches of the last block are used: the others are keys and values only.
        read = tokens[:, :1] if masked is None else torch.cat([tokens[:, :1], take(tokens[:, 1:], masked)], dim=1)
        read = self.last_block(read, tokens)
        return read, None if masked is None else read[:, 1:]

    def forward_neighbours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.reads_class_token:
            return super().forward_neighbours(images)
        tokens = self.run(self.blocks[:-1], self.embedded(images, lambda patches: patches))
        return self.last_block(tokens[:, :1], tokens), tokens

    @property
    def reads_class_token(self) -> bool:
        """Whether the feature needs the class token alone of the last block."""
        return type(self) is ClipTower and is_residual(self.blocks[-1])

    def last_block(self, read: Tensor, tokens: Tensor) -> Tensor:
        """The last block's output for the tokens `read` [B, R, W] out of its input `tokens` [B, T, W]."""
        last: Any = self.blocks[-1]
        read = read + last.ls_1(attended(last.attn, last.ln_1(read), last.ln_1(tokens)))
        return read + last.ls_2(last.mlp(last.ln_2(read)))

    def patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:]

    def feature(self, tokens: Tensor) -> Tensor:
        return self.visual.ln_post(tokens[:, 0]) @ self.visual.proj

    def project_patches(self, normed: Tensor) -> Tensor:
        return normed @ self.visual.proj

    def patch_norm(self) -> nn.Module:
        norm = copy.deepcopy(self.visual.ln_post)
        norm.reset_parameters()
        return norm


def require_attention(attention: Any) -> None:
    """In another open_clip the arguments may differ, and logits would be wrong without an error."""
    require(
        isinstance(attention, nn.MultiheadAttention | SelfAttention),
        f"the attention of open_clip {open_clip.__version__} ({type(attention).__name__}) is none that MUST knows; "
        "install one that has it: pip install 'open_clip_torch>=3,<4'",
    )


class ClipMeanTower(ClipTower):
    """Mean of the patches (CLIPA); there is a class token too, which takes part in attention only."""

    def feature(self, tokens: Tensor) -> Tensor:
        visual, patches = self.visual, tokens[:, 1:]
        if visual.final_ln_after_pool:
            return visual.ln_post(patches.mean(dim=1)) @ visual.proj
        return visual.ln_post(patches).mean(dim=1) @ visual.proj

    def patch_norm(self) -> nn.Module:
        return copy.deepcopy(self.visual.ln_post)


class CocaTower(ClipTower):
    """Attention pooling with many queries (CoCa), of which the first one gives the image's feature."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        require_attention(visual.attn_pool.attn)

    def feature(self, tokens: Tensor) -> Tensor:
        return self.pooled(self.visual.attn_pool.ln_k(tokens))

    def project_patches(self, normed: Tensor) -> Tensor:
        return self.pooled(normed.flatten(0, 1).unsqueeze(1)).unflatten(0, normed.shape[:2])

    def patch_norm(self) -> nn.Module:
        return copy.deepcopy(self.visual.attn_pool.ln_k)

    def pooled(self, keys: Tensor) -> Tensor:
        """Feature [N, D] of normalised tokens [N, T, W]."""
        visual, pool = self.visual, self.visual.attn_pool
        query = pool.ln_q(pool.query)[:1].expand(keys.shape[0], 1, -1)
        return visual.ln_post(attended(pool.attn, query, keys)[:, 0]) @ visual.proj


def clip_tower(visual: Any) -> Tower:
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
