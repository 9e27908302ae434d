"""open_clip's own VisionTransformer with a class token (OpenAI, LAION, ...)."""

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
        visual.output_tokens = False  # some towers return all tokens besides the feature
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
        return is_residual(self.blocks[-1])

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


def clip_tower(visual: Any) -> Tower:
    name = "VisionTransformer"
    if visual.patch_size[0] != visual.patch_size[1] or visual.proj is None:
        refuse(name, "it has no square patches or no projection")
    check_grid(name, visual.image_size, visual.patch_size[0])
    if visual.attn_pool is not None:
        refuse(name, "its attention pooling (CoCa) is not supported (see docs/models.md)")
    if visual.pool_type != "tok":
        refuse(name, f"its pooling '{visual.pool_type}' (CLIPA) is not supported (see docs/models.md)")
    return ClipTower(visual)
