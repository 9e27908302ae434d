"""Self-attention over tokens that are stored image by image.

The blocks of open_clip use torch's MultiheadAttention, which transposes the batch before its first projection. The
matrix is then not contiguous, and in bf16 on a CPU copying it takes longer than the other operations of the block.
This module has the same parameters, under the same names, and computes the same."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Replaces the attention of a block and takes over its parameters; all embedding sizes are equal."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.num_heads = original.num_heads
        self.in_proj_weight, self.in_proj_bias = original.in_proj_weight, original.in_proj_bias
        self.out_proj = original.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        """The signature of the original. Values have the keys' tokens."""
        assert options.get("attn_mask") is None, "in image towers every token attends to all others"
        return self.attended(query, key), None

    def attended(self, query: Tensor, key: Tensor) -> Tensor:
        """Tokens [B, Q, W], which attend to the tokens `key` [B, L, W] -> [B, Q, W]."""
        B, Q, W = query.shape
        if key is query:
            packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.view(B, Q, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        else:
            weights, biases = self.in_proj_weight.split([W, 2 * W]), self.in_proj_bias.split([W, 2 * W])
            q = F.linear(query, weights[0], biases[0]).view(B, Q, self.num_heads, -1).transpose(1, 2)
            packed = F.linear(key, weights[1], biases[1])
            k, v = packed.view(B, key.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v).transpose(1, 2).reshape(B, Q, W))


def attended(attention: Any, query: Tensor, key: Tensor) -> Tensor:
    """The output of an attention of torch or of this module: `query` [B, Q, W] attends to `key`."""
    if isinstance(attention, SelfAttention):
        return attention.attended(query, key)
    return attention(query, key, key, need_weights=False)[0]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries [B, H, Q, D], keys and values [B, H, L, D] -> [B, H, Q, D].

    In bf16 on a CPU two plain products are faster than torch's fused attention."""
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


def is_residual(block: nn.Module) -> bool:
    """Whether it is open_clip's plain block, x + attention(ln_1 x), then x + mlp(ln_2 x)."""
    return type(block).__name__ == "ResidualAttentionBlock"
