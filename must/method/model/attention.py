"""Self-attention over tokens that are stored image by image.

open_clip's blocks hold torch's MultiheadAttention, which turns the batch around before its first projection; in bf16 on
a CPU the product with what is then no contiguous matrix costs more in copies than the whole rest of the block. This
module has the same parameters under the same names and computes the same.
"""

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

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, None]:
        """Tokens [B, Q, W] -> ([B, Q, W], None). Keys and values are of the tokens `key` [B, L, W], if it is given."""
        assert options.get("attn_mask") is None, "image towers let every token see every other"
        B, Q, W = query.shape
        if key is None or key is query:
            packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.view(B, Q, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        else:
            weights, biases = self.in_proj_weight.split([W, 2 * W]), self.in_proj_bias.split([W, 2 * W])
            q = F.linear(query, weights[0], biases[0]).view(B, Q, self.num_heads, -1).transpose(1, 2)
            packed = F.linear(key, weights[1], biases[1])
            k, v = packed.view(B, key.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v).transpose(1, 2).reshape(B, Q, W)), None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries [B, H, Q, D], keys and values [B, H, L, D] -> [B, H, Q, D].

    In bf16 on a CPU two plain products are faster than torch's fused attention.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def use_contiguous_attention(tower: nn.Module) -> None:
    """Replaces the self-attention of a tower's blocks in place."""
    for block in tower.modules():
        attention = getattr(block, "attn", None)
        if isinstance(attention, nn.MultiheadAttention) and can_stand_in(attention):
            block.attn = SelfAttention(attention)


def can_stand_in(attention: Any) -> bool:
    """Whether `SelfAttention` computes what this module does."""
    return type(attention) is nn.MultiheadAttention and attention.batch_first and attention.in_proj_weight is not None
