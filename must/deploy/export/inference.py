"""The network for inference: the image tower and the classifier.

Shapes: B images, Q and L tokens, W width, H heads, D embedding, K classes."""

import copy
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
        # A copy of the modules, which shares the weights.
        model = copy.deepcopy(bundle.model, {id(weights): weights for weights in bundle.model.parameters()})
        self.visual, self.tower, self.memory = model.visual, model.tower, bundle.memory
        preprocess, blocks = get_preprocess(bundle.description), list[Any](model.tower.blocks)
        # Towers of other blocks than open_clip's plain ones with this library's attention are used unchanged.
        plain = all(is_residual(block) and isinstance(block.attn, SelfAttention) for block in blocks)
        for block in blocks if plain and type(model.tower) is ClipTower else ():
            block.attn = SplitAttention(block.attn)
        self.register_buffer("classifier", model.logit_factor * model.classifier.detach())  # [D, K]
        self.uint8, self.embeddings = uint8, embeddings
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            image = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        last, tokens = self.tower.forward_neighbours(image)
        feature = F.normalize(self.tower.feature(last), dim=-1)
        outputs: tuple[Tensor, ...] = ((feature @ self.classifier).softmax(dim=-1),)
        if self.memory:
            outputs = self.memory(outputs[0], self.memory.join(flatten_tokens(self.tower, tokens), feature))
        return (*outputs, feature) if self.embeddings else outputs


class SplitAttention(SelfAttention):
    """Attention with three projections for q, k and v. Splitting the single projection of training would need several
    ONNX nodes per block, which copy data at run time."""

    def __init__(self, attention: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.out_proj = attention.num_heads, attention.out_proj
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        scale = (weights[0].shape[0] // self.num_heads) ** -0.5
        self.query = linear(scale * weights[0], scale * biases[0])
        self.key, self.value = linear(weights[1], biases[1]), linear(weights[2], biases[2])

    def attended(self, query: Tensor, key: Tensor) -> Tensor:
        """Tokens [B, Q, W], which attend to the tokens `key` [B, L, W] -> [B, Q, W]."""
        projected = self.query(query), self.key(key), self.value(key)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)  # [B, H, tokens, W / H]
        mixed = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.detach().contiguous(), bias.detach().contiguous()
    return layer


def run_in_batches(network: Any, images: Tensor) -> Tensor:
    """The network's outputs [N, ...] for images [N, 3, S, S], 32 at a time."""
    with torch.inference_mode():
        return torch.cat([network(part) for part in images.split(32)])
