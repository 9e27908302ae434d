"""Self-attention over tokens that are stored image by image.

The blocks of open_clip 3 use torch's MultiheadAttention, which transposes the batch before its first projection. The
matrix is then not contiguous, and in bf16 on a CPU copying it takes longer than the other operations of the block.
open_clip 4 has its own attention. This module has the parameters of both, under the same names, and computes the same.
"""

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
        self.returns_pair = isinstance(original, nn.MultiheadAttention)  # its block expects (output, weights)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, **options: Any
    ) -> Tensor | tuple[Tensor, None]:
        """The attention with the signature of both; open_clip 4 calls the keys k_x. Values have the keys' tokens."""
        assert options.get("attn_mask") is None, "in image towers every token attends to all others"
        key = options.get("k_x") if key is None else key
        output = self.attended(query, query if key is None else key)
        return (output, None) if self.returns_pair else output

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
    """The output of an attention of torch, open_clip 4 or this module: `query` [B, Q, W] attends to `key`."""
    if isinstance(attention, SelfAttention):
        return attention.attended(query, key)
    if isinstance(attention, nn.MultiheadAttention):
        return attention(query, key, key, need_weights=False)[0]
    return attention(query, k_x=key, v_x=key)


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
        if (isinstance(attention, nn.MultiheadAttention) or is_residual(block)) and can_replace(attention):
            block.attn = SelfAttention(attention)


def is_residual(block: nn.Module) -> bool:
    """Whether it is open_clip's plain block, x + attention(ln_1 x), then x + mlp(ln_2 x), not wrapped by FSDP."""
    return type(block).__name__ == "ResidualAttentionBlock"


def can_replace(attention: Any) -> bool:
    """Whether `SelfAttention` computes what this module does."""
    if type(attention) is nn.MultiheadAttention:
        return attention.batch_first and attention.in_proj_weight is not None
    return is_known(attention) and attention.in_proj_weight is not None and attention.in_proj_bias is not None


def is_known(attention: Any) -> bool:
    """Whether it is torch's attention, or open_clip 4's without any of its options."""
    if type(attention) is nn.MultiheadAttention:
        return True
    plain = type(attention).__name__ == "Attention" and type(attention).__module__.startswith("open_clip.")
    norms = [getattr(attention, name, None) for name in ("ln_q", "ln_k", "ln_inner")]
    scales = [getattr(attention, name, 0) for name in ("logit_scale", "head_scale")]
    drops = [getattr(attention, name, None) for name in ("attn_drop", "out_drop")]
    return (
        plain
        and all(isinstance(norm, nn.Identity) for norm in norms)
        and all(scale is None for scale in scales)
        and all(isinstance(drop, nn.Dropout) and drop.p == 0 for drop in drops)
    )
