"""Image towers: what MUST needs of an architecture, in one small class for each kind.

The method is written for a CLIP Vision Transformer: patches, one of which can be replaced by a mask token before
positions are added, and a class token that becomes the image's feature. A tower class defines for another
architecture where its patches are, how tokens become the image's feature, and the feature of a single patch.

Shapes: B images, L patches, M masked patches an image, T = prefix tokens + L, W width, D embedding, P patch side.

A new one is a class here, a case in `make_tower`, a tiny model in tests/method/model/tiny.py, a row in docs/models.md.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from must.base.errors import UserError

BEFORE_THE_BLOCKS = (  # beginnings of parameters' names
    *("class_embedding", "positional_embedding", "conv1", "ln_pre"),  # open_clip's
    *("cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre."),  # timm's
)
NEEDS_PATCHES = (
    "MUST masks single patches: it needs a Vision Transformer that cuts the image into patches (see docs/models.md)"
)
HIERARCHICAL = (
    "its layers merge places of the image (hierarchical), and MUST masks single patches, each of which must come out "
    "of the last layer (see docs/models.md)"
)


class Tower(ABC):
    """The parts of an open_clip image tower. It refers to the module `visual`, which owns the parameters.

    The local feature u of a patch follows one rule for every family: the tower's own head, applied to that patch
    alone, with ln_patch in place of the tower's last normalization.

    - class token (as published, arXiv 2206.02967):  u = n(proj(ln_patch(x)))
    - mean of the patches:                           u = n(proj(ln_patch(x))): the mean over one patch is the patch
    - attention pooling:                             u = n(head(pool({ln_patch(x)}))): the softmax over one key is 1, so
      the patch passes through the value and output projections (and the pool's MLP, if it has one)

    n(v) = v / |v|. The last two are this project's; the paper has class tokens only."""

    visual: Any
    width: int  # W
    embed: int  # D
    patch: int  # P, pixels
    blocks: Sequence[nn.Module]
    checkpointing = False  # activations of the blocks: they are computed again in the backward pass, to save memory

    def run(self, blocks: Iterable[nn.Module], tokens: Tensor, **options: Any) -> Tensor:
        """Tokens [B, T, W] after these blocks."""
        for block in blocks:
            if self.checkpointing:
                tokens = checkpoint(block, tokens, use_reentrant=False, **options)
            else:
                tokens = block(tokens, **options)
        return tokens

    @abstractmethod
    def forward_tokens(self, images: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        """Images [B, 3, H, W] -> all tokens after the last block, [B, T, W].

        `replace` maps patch embeddings [B, L, W] to the input of the blocks: positions are added after masking."""

    def forward_features(
        self, images: Tensor, replace: Callable[[Tensor], Tensor], masked: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(tokens for `feature`, the patches [B, M, W] with the numbers `masked` [B, M]), after the last block.

        A tower need not compute tokens of its last block that neither of the two needs."""
        tokens = self.forward_tokens(images, replace)
        return tokens, None if masked is None else take(self.patches(tokens), masked)

    def forward_neighbours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens for `feature`, tokens [B, T, W] that similarity is computed from): those of the last block, or of the
        one before where the tower computes only the last block's class token."""
        tokens = self.forward_tokens(images, lambda patches: patches)
        return tokens, tokens

    @abstractmethod
    def patches(self, tokens: Tensor) -> Tensor:
        """The patches [B, L, W] among the tokens."""

    @abstractmethod
    def feature(self, tokens: Tensor) -> Tensor:
        """The image's feature [B, D], as `visual(images)` gives it; not normalised."""

    @abstractmethod
    def project_patches(self, normed: Tensor) -> Tensor:
        """Features [B, M, D] of patches [B, M, W] that went through ln_patch; not normalised."""

    @abstractmethod
    def patch_norm(self) -> nn.Module:
        """A new ln_patch.

        With a class token it is newly initialized, as published. Where the head pools patches, it is a copy of the
        tower's last normalization, with which the head was trained."""

    def find_layer(self, name: str) -> int:
        """The layer of a parameter of `visual`: 0 for embeddings, N + 1 for block N, len(blocks) + 1 for the rest."""
        if block := re.match(r"(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.", name):
            return int(block[1]) + 1
        return 0 if name.removeprefix("trunk.").startswith(BEFORE_THE_BLOCKS) else len(self.blocks) + 1


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, M, W] with the numbers `index` [B, M] out of tokens [B, L, W]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def check_grid(name: str, image: tuple[int, int], patch: int) -> None:
    """Patches must cover the image, which not all models ask for."""
    if image[0] % patch or image[1] % patch:
        refuse(
            name,
            f"its patches of {patch} pixels do not divide its image of {image[0]} pixels; use the variant with "
            f"{image[0] // patch * patch} pixels, if there is one",
        )


def refuse(name: str, reason: str) -> NoReturn:
    raise UserError(f"the image tower {name} cannot be trained: {reason}")
