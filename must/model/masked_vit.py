"""The network that MUST trains: an image tower with a mask token, a patch LayerNorm, a pixel decoder, a classifier.

Shapes: B images, L patches, M masked patches an image, W width of the tower, D embedding, K classes, P patch side.
Source of every formula: Li, Savarese, Hoi, "Masked Unsupervised Self-training for Label-free Image Classification",
arXiv 2206.02967."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.base.errors import UserError
from must.model.towers import (
    HIERARCHICAL,
    NEEDS_PATCHES,
    Tower,
    clip_tower,
    refuse,
    timm_tower,
    use_contiguous_attention,
)


class StudentOutput(NamedTuple):
    """The student's output for masked images."""

    logits: Tensor  # [B, K], logit factor x cosine
    reconstruction: Tensor  # [B, M, 3 P P] normalised pixels of the masked patches, in (channel, row, column) order
    alignment: Tensor  # [B, M] squared distance of unit vectors, 0..4: masked patch against the image's class feature


class MaskedViT(nn.Module):
    """`visual`: the image tower of an open_clip model; `classifier`: [D, K], unit columns.

    Without `masked` it is the plain zero-shot classifier; with it, the masked student of the method. The teacher is
    a second instance of the same class. What depends on the tower's architecture is in `must.model.towers`."""

    def __init__(self, visual: Any, classifier: Tensor, logit_factor: float = 100.0) -> None:
        super().__init__()
        self.tower = make_tower(visual)
        width, embed = self.tower.width, self.tower.embed
        if classifier.ndim != 2 or classifier.shape[0] != embed:
            raise UserError(
                f"the classifier has {classifier.shape[0]} dimensions, the model {embed}: "
                "it was made with another model; run `must classifier` with this one"
            )
        for block in self.tower.blocks:
            use_contiguous_attention(block)
        self.visual: Any = visual
        self.patch_size: int = self.tower.patch
        self.logit_factor = logit_factor
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ln_patch = self.tower.patch_norm()
        self.decoder = nn.Linear(width, 3 * self.patch_size**2)
        self.classifier = nn.Parameter(classifier.detach().clone())
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Tensor | StudentOutput:
        """Images [B, 3, H, W], normalised -> logits [B, K]; with masked patch numbers [B, M] -> StudentOutput."""
        tokens, masked_tokens = self.tower.forward_features(images, lambda patches: self.mask(patches, masked), masked)
        feature = F.normalize(self.tower.feature(tokens), dim=-1)
        logits = self.logit_factor * feature @ self.classifier
        if masked_tokens is None:
            return logits
        patches = self.ln_patch(masked_tokens)
        local = F.normalize(self.tower.project_patches(patches), dim=-1)
        alignment = (local - feature[:, None]).square().sum(-1)
        return StudentOutput(logits, self.decoder(patches), alignment)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W], normalised -> (logits [B, K], features [B, D] of length 1, tokens [B, T, W] that
        similarity is computed from)."""
        last, tokens = self.tower.forward_neighbours(images)
        feature = F.normalize(self.tower.feature(last), dim=-1)
        return self.logit_factor * feature @ self.classifier, feature, tokens

    def mask(self, patches: Tensor, masked: Tensor | None) -> Tensor:
        """Patch embeddings [B, L, W], those with the numbers `masked` [B, M] replaced by the mask token."""
        if masked is None:
            return patches
        is_masked = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        is_masked = is_masked.scatter(1, masked, True)[..., None]
        return torch.where(is_masked, self.mask_token.to(patches.dtype), patches)

    @torch.no_grad()
    def start_mask_token(self, image: Tensor) -> None:
        """Sets the mask token to the mean patch of an image [3, H, W], normalised. Embedding is linear: of a mean image
        it is the mean patch of all images."""

        def keep(patches: Tensor) -> Tensor:
            self.mask_token.copy_(patches.mean((0, 1)))
            return patches

        self.tower.forward_features(image[None], keep, None)

    def find_layer(self, name: str) -> int:
        """The layer of a parameter: 0 for embeddings and mask token, N + 1 for block N, blocks + 1 for the rest."""
        if name == "mask_token":
            return 0
        tower_name = name.removeprefix("visual.")
        return self.tower.find_layer(tower_name) if tower_name != name else len(self.tower.blocks) + 1


def make_tower(visual: Any) -> Tower:
    """The tower of an open_clip model's `visual`."""
    if hasattr(visual, "trunk"):
        return timm_tower(visual)
    if hasattr(visual, "class_embedding") and hasattr(visual, "conv1"):
        return clip_tower(visual)
    refuse(type(visual).__name__, HIERARCHICAL if hasattr(visual, "layer4") else NEEDS_PATCHES)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [B, 3, H, W] as patches [B, L, 3 P P], row-major, each in (channel, row, column) order."""
    B, C, H, W = images.shape
    grid = images.reshape(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(B, (H // patch) * (W // patch), C * patch * patch)
