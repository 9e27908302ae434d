"""The network that MUST trains: CLIP's image tower with a mask token, a patch LayerNorm, a pixel decoder, a classifier.

Shapes: B images, L patches, M masked patches an image, W width of the tower, D embedding, K classes, P patch side.
Source of every formula: Li, Savarese, Hoi, "Masked Unsupervised Self-training for Label-free Image Classification",
arXiv 2206.02967.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.model.attention import use_contiguous_attention


class StudentOutput(NamedTuple):
    """What the student says about masked images."""

    logits: Tensor  # [B, K], logit factor x cosine
    reconstruction: Tensor  # [B, M, 3 P P] normalised pixels of the masked patches, in (channel, row, column) order
    alignment: Tensor  # [B, M] squared distance of unit vectors, 0..4: masked patch against the image's class feature


class MaskedViT(nn.Module):
    """`visual`: an open_clip VisionTransformer with a class token; `classifier`: [D, K], unit columns.

    Without `masked` it is the plain zero-shot classifier; with it, the masked student of the method. The teacher is
    a second instance of the same class.

    Raises:
        ValueError: the tower is none that the method can mask (no class token, no plain patch embedding).
    """

    def __init__(self, visual: Any, classifier: Tensor, logit_factor: float = 100.0) -> None:
        super().__init__()
        check_supported(visual)
        width, embed = visual.conv1.out_channels, visual.output_dim
        if classifier.ndim != 2 or classifier.shape[0] != embed:
            raise ValueError(
                f"the classifier is for embeddings of {classifier.shape[0]} numbers, the model's have {embed}: "
                "it was made with another model; run `must classifier` with this one"
            )
        use_contiguous_attention(visual)
        self.visual: Any = visual
        self.patch_size: int = visual.patch_size[0]
        self.logit_factor = logit_factor
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ln_patch = type(visual.ln_post)(width)
        self.decoder = nn.Linear(width, 3 * self.patch_size**2)
        self.classifier = nn.Parameter(classifier.detach().clone())
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Tensor | StudentOutput:
        """Images [B, 3, H, W], normalised -> logits [B, K]; with masked patch numbers [B, M] -> StudentOutput."""
        tokens = self.encode(images, masked)
        feature = F.normalize(self.visual.ln_post(tokens[:, 0]) @ self.visual.proj, dim=-1)
        logits = self.logit_factor * feature @ self.classifier
        if masked is None:
            return logits
        patches = self.ln_patch(take(tokens[:, 1:], masked))
        local = F.normalize(patches @ self.visual.proj, dim=-1)
        alignment = (local - feature[:, None]).square().sum(-1)
        return StudentOutput(logits, self.decoder(patches), alignment)

    def encode(self, images: Tensor, masked: Tensor | None) -> Tensor:
        """All tokens after the last block, [B, 1 + L, W]. Masking replaces patches before positions are added."""
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        if masked is not None:
            is_masked = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
            is_masked = is_masked.scatter(1, masked, True)[..., None]
            patches = torch.where(is_masked, self.mask_token.to(patches.dtype), patches)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return visual.transformer(visual.ln_pre(tokens))


def check_supported(visual: Any) -> None:
    name = type(visual).__name__
    if not all(hasattr(visual, part) for part in ("conv1", "class_embedding", "transformer", "ln_post", "proj")):
        raise ValueError(f"image tower {name} is not supported: MUST needs a Vision Transformer with a class token")
    if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
        raise ValueError(f"image tower {name} does not classify from a class token, which MUST needs")
    if visual.proj is None or visual.patch_size[0] != visual.patch_size[1]:
        raise ValueError(f"image tower {name} has no projection or no square patches, which MUST needs")


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, M, W] with the numbers `index` [B, M] out of tokens [B, L, W]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [B, 3, H, W] as patches [B, L, 3 P P], row-major, each in (channel, row, column) order."""
    B, C, H, W = images.shape
    grid = images.reshape(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(B, (H // patch) * (W // patch), C * patch * patch)
