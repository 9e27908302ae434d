"""The network for inference: the image tower and the classifier, computing only what the class token needs.

Shapes: B images, L tokens (the class token first), W width, H heads, D embedding, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from must.method.model.attention import SelfAttention, is_residual
from must.method.model.bundle import Bundle
from must.method.model.description import get_preprocess
from must.method.model.towers.clip_vit import ClipTower
from must.method.model.vectors import flatten_tokens

LARGEST_DIFFERENCE = 1e-3  # in a probability, of float32 arithmetic


class InferenceModel(nn.Module):
    """Images -> class probabilities float32 [B, K]. Without mask token, patch LayerNorm and decoder.

    A bundle with a memory gives probabilities that include its neighbours' votes, and as the second output `similarity`
    float32 [B], from 0 (an image unlike any in the memory, which has no votes) to 1. With `embeddings`, the last output
    is the classifier's input, the images' features: float32 [B, D], length 1.
    Images are float32 [B, 3, S, S], normalised; or, with `uint8`, uint8 [B, S, S, 3] pixels that the graph normalises.
    """

    mean: Tensor
    std: Tensor
    classifier: Tensor

    def __init__(self, bundle: Bundle, uint8: bool, embeddings: bool = False) -> None:
        super().__init__()
        model, preprocess = bundle.model, get_preprocess(bundle.description)
        self.visual, self.tower, self.memory = model.visual, model.tower, bundle.memory
        # Towers of other blocks than open_clip's plain ones with this library's attention are used unchanged.
        plain = type(model.tower) is ClipTower and all(
            is_residual(block) and isinstance(block.attn, SelfAttention) for block in model.tower.blocks
        )
        self.blocks = nn.ModuleList(map(Block, model.tower.blocks)) if plain else None
        self.register_buffer("classifier", model.logit_factor * model.classifier.detach())  # [D, K]
        self.uint8, self.embeddings = uint8, embeddings
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            image = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        last, tokens = (
            self.tower.forward_neighbours(image) if self.blocks is None else self.class_token(image, self.blocks)
        )
        feature = F.normalize(self.tower.feature(last), dim=-1)
        outputs: tuple[Tensor, ...] = ((feature @ self.classifier).softmax(dim=-1),)
        if self.memory:
            outputs = self.memory(outputs[0], self.memory.join(flatten_tokens(self.tower, tokens), feature))
        return (*outputs, feature) if self.embeddings else outputs

    def class_token(self, image: Tensor, blocks: nn.ModuleList) -> tuple[Tensor, Tensor]:
        """(the class token [B, 1, W] after the last block, all tokens [B, T, W] before it) of a tower that classifies
        from its class token.

        The last block computes only that token (from the keys and values of all tokens): the others are not used, and
        make up 10/12 of that block's matrix products.
        """
        visual = self.visual
        patches = visual.conv1(image).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = visual.ln_pre(torch.cat([first, patches], dim=1) + visual.positional_embedding)
        for block in blocks[:-1]:
            tokens = block(tokens, tokens)
        return blocks[-1](tokens[:, :1], tokens), tokens


class Block(nn.Module):
    """open_clip's standard block, x + attention(ln_1 x), then x + mlp(ln_2 x), for a subset of the tokens.

    It has three projections for q, k and v. Splitting the single projection of training would need several ONNX nodes
    per block, which copy data at run time.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.ls_1, self.ls_2, self.mlp = block.ln_1, block.ln_2, block.ls_1, block.ls_2, block.mlp
        self.heads, self.out = block.attn.num_heads, block.attn.out_proj
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        scale = (weights[0].shape[0] // self.heads) ** -0.5
        self.query = linear(scale * weights[0], scale * biases[0])
        self.key, self.value = linear(weights[1], biases[1]), linear(weights[2], biases[2])

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """The block's output for the tokens `queries` [B, Q, W] out of `tokens` [B, L, W]."""
        normed = self.ln_1(tokens)
        query = normed if queries is tokens else self.ln_1(queries)
        q, k, v = (
            self.split_heads(self.query(query)),
            self.split_heads(self.key(normed)),
            self.split_heads(self.value(normed)),
        )
        mixed = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = queries + self.ls_1(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, tokens, W] -> [B, H, tokens, W / H]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.detach().contiguous(), bias.detach().contiguous()
    return layer


def run_in_batches(network: Any, images: Tensor) -> Tensor:
    """The network's outputs [N, ...] for images [N, 3, S, S], 32 at a time."""
    with torch.inference_mode():
        return torch.cat([network(part) for part in images.split(32)])
