"""Self-attention over tokens that lie image by image in memory.

open_clip's blocks hold torch's MultiheadAttention, which turns the batch around before its first projection; in bf16 on
a CPU the product with what is then no contiguous matrix costs more in copies than the whole rest of the block. This
module has the same parameters under the same names and computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Stands in for an `nn.MultiheadAttention` with one embedding size, whose parameters it takes over."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = original.num_heads
        self.in_proj_weight, self.in_proj_bias = original.in_proj_weight, original.in_proj_bias
        self.out_proj = original.out_proj

    def forward(self, x: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        """Tokens [B, L, W] -> ([B, L, W], None): queries, keys and values are all of `x`."""
        assert attn_mask is None, "image towers let every token see every other"
        B, L, W = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(B, L, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(B, L, W)), None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, H, L, D] each -> the same. In bf16 on a CPU two plain products are faster than torch's fused attention."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def use_contiguous_attention(tower: nn.Module) -> None:
    """Replaces the self-attention of a tower's blocks in place."""
    for block in tower.modules():
        attention = getattr(block, "attn", None)
        if type(attention) is nn.MultiheadAttention and attention.batch_first and attention.in_proj_weight is not None:
            block.attn = SelfAttention(attention)
