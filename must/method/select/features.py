"""One pass over unlabeled images: features of the frozen zero-shot tower, and predictions of the models.

The similarity of images is computed from the frozen tower, which the adaptation does not change: the class token and
the patch tokens after each block (without the last block of CLIP's own towers, which computes the class token only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.parameters import require
from must.base.progress import watched
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.model.masked_vit import MaskedViT

GRIDS = (4, 2, 1)  # patches per side after pooling; the first that gives at most MAX_SIZE numbers per image is used
MAX_SIZE = 65_536
PROJECTED_SIZE = 512  # numbers per image after a random projection, which is used above eight times this size


@dataclass
class ImageFeatures:
    """N images that could be decoded, D numbers each; M models, zero-shot first."""

    numbers: Tensor  # int64 [N], in the split
    features: Tensor  # float16 [N, D]
    probabilities: Tensor  # float16 [M, N, K]
    sources: list[str]

    @classmethod
    def joined(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The parts of several processes, in the order of the images' numbers."""
        numbers = torch.cat([part.numbers for part in parts])
        order = numbers.argsort()
        sources = [source for part in parts for source in part.sources]
        return cls(
            numbers[order],
            torch.cat([part.features for part in parts])[order],
            torch.cat([part.probabilities for part in parts], 1)[:, order],
            [sources[index] for index in order.tolist()],
        )


class BlockTokens:
    """Collects the outputs of the blocks of a network's tower during a forward pass. Use as a context; then `take`."""

    def __init__(self, network: MaskedViT) -> None:
        self.tower = network.tower
        self.blocks = list(self.tower.blocks)
        self.outputs: list[Tensor] = []
        self.projection: Tensor | None = None

    def __enter__(self) -> BlockTokens:
        self.outputs = []
        self.hooks = [block.register_forward_hook(self.catch) for block in self.blocks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def catch(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> Tensor:
        """Float32 [B, D]: the features of the last batch."""
        tokens, self.outputs = self.outputs, []
        patches = [self.tower.patches(block).float() for block in tokens]
        prefixes = [
            block[:, : block.shape[1] - part.shape[1]].float() for block, part in zip(tokens, patches, strict=True)
        ]
        width, side = patches[0].shape[2], round(patches[0].shape[1] ** 0.5)
        for grid in GRIDS:
            if len(tokens) * (prefixes[0].shape[1] + grid**2) * width <= MAX_SIZE:
                break
        if grid < side and side * side == patches[0].shape[1]:
            square = (part.transpose(1, 2).unflatten(2, (side, side)) for part in patches)
            patches = [F.adaptive_avg_pool2d(part, grid).flatten(2).transpose(1, 2) for part in square]
        flat = torch.cat([part.flatten(1) for pair in zip(prefixes, patches, strict=True) for part in pair], 1)
        if flat.shape[1] <= 8 * PROJECTED_SIZE:
            return flat
        if self.projection is None:
            generator = torch.Generator().manual_seed(0)
            random = torch.randn(flat.shape[1], PROJECTED_SIZE, generator=generator)
            self.projection = (random / flat.shape[1] ** 0.5).to(flat.device)
        return flat @ self.projection


@torch.inference_mode()
def extract_features(
    zero_shot: MaskedViT,
    source: EvalSource,
    device: torch.device,
    others: Callable[[Tensor], Iterable[Tensor]] | None = None,
    pause: Callable[[], None] | None = None,
) -> ImageFeatures:
    """Runs the models on every image once. Does not change the state of torch's random generator.
    `others`: normalised images [B, 3, H, W] on the device -> the logits [B, K] of each other model.
    `pause`: called before every batch; it may raise to stop.
    Raises ValueError: none of the images can be decoded."""
    zero_shot = zero_shot.to(device).eval()
    tokens = BlockTokens(zero_shot)
    numbers, features, probabilities, sources = [], [], [], list[str]()
    with torch.random.fork_rng(devices=[]):  # loaders draw a seed from it
        for batch in watched(source, "predictions"):
            if pause is not None:
                pause()
            images = normalize(batch.pixels.to(device), source.preprocess)
            with tokens:
                logits = [zero_shot(images)]
            batch_features = tokens.take()
            logits += others(images) if others else ()
            features.append(batch_features.half().cpu())
            probabilities.append(torch.stack(logits).float().softmax(-1).half().cpu())
            numbers.append(batch.samples)
            sources += batch.sources
    require(bool(numbers), "none of the split's images can be decoded; check them: must index verify")
    return ImageFeatures(torch.cat(numbers), torch.cat(features), torch.cat(probabilities, 1), sources)


def subsample(source: EvalSource, limit: int) -> EvalSource:
    """Limits the source to `limit` images of the split, evenly spread; a process keeps its share of them."""
    images = len(source)
    if images > limit:
        source.numbers = [n for n in source.numbers if n * limit // images > (n - 1) * limit // images]
    return source
