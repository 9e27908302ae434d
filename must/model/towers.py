"""Image towers: what MUST needs of an architecture, in one small class for each kind.

The method is written for a CLIP Vision Transformer: patches, one of which can be replaced by a mask token before
positions are added, and a class token that becomes the image's feature. A tower class defines for another
architecture where its patches are, how tokens become the image's feature, and the feature of a single patch.
`ClipTower` is for open_clip's VisionTransformer with a class token (OpenAI, LAION, ...); `TimmTower` for timm's Vision
Transformers inside open_clip (SigLIP and SigLIP2, Perception Encoder, EVA, ...), whose prefix tokens are optional and
whose head pools by class token, by mean or by attention.

Shapes: B images, L patches, M masked patches an image, T = prefix tokens + L, W width, D embedding, P patch side.

A new one is a class here, a case in `make_tower`, a tiny model in tests/model/tiny.py, a row in docs/models.md.

The blocks of open_clip use torch's MultiheadAttention, which transposes the batch before its first projection. The
matrix is then not contiguous, and in bf16 on a CPU copying it takes longer than the other operations of the block. The
attention here has the same parameters, under the same names, and computes the same from tokens image by image."""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import open_clip
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from must.base.errors import UserError
from must.base.parameters import require


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


def compute_attention(attention: Any, query: Tensor, key: Tensor) -> Tensor:
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
        read = read + last.ls_1(compute_attention(last.attn, last.ln_1(read), last.ln_1(tokens)))
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


NAFLEX = "its images keep their shapes (NaFlex), and MUST's views are squares of one size; take a fixed resolution"


class TimmTower(Tower):
    def __init__(self, visual: Any) -> None:
        self.visual, trunk = visual, visual.trunk
        self.width, self.patch = trunk.embed_dim, trunk.patch_embed.patch_size[0]
        self.embed = find_output_size(visual)
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


def find_output_size(visual: Any) -> int:
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
