"""One pass over unlabeled images: what the frozen zero-shot tower sees, and what zero-shot and a model predict.

Which images are similar follows from the frozen tower, which the adaptation cannot influence: the class token and the
patch tokens after each block (but the last of CLIP's own towers, which is computed for the class token alone).
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

GRID = (4, 2, 1)  # patches a side after pooling; the first that gives at most WIDE numbers an image
WIDE = 65_536
NUMBERS = 512  # an image, after a fixed random projection where there are more than eight times as many


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
            [sources[place] for place in order.tolist()],
        )


class BlockTokens:
    """Collects what the blocks of a network's tower give while it looks at images. Use as a context; then `take`."""

    def __init__(self, network: MaskedViT) -> None:
        self.tower = network.tower
        self.blocks = list(self.tower.blocks)
        self.caught: list[Tensor] = []
        self.projection: Tensor | None = None

    def __enter__(self) -> BlockTokens:
        self.caught = []
        self.hooks = [block.register_forward_hook(self.catch) for block in self.blocks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def catch(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.caught.append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> Tensor:
        """Float32 [B, D] of the batch that was looked at last."""
        tokens, self.caught = self.caught, []
        patches = [self.tower.patches(block).float() for block in tokens]
        prefixes = [
            block[:, : block.shape[1] - len(own[0])].float() for block, own in zip(tokens, patches, strict=True)
        ]
        width, side = patches[0].shape[2], round(patches[0].shape[1] ** 0.5)
        for grid in GRID:
            if len(tokens) * (prefixes[0].shape[1] + grid**2) * width <= WIDE:
                break
        if grid < side and side * side == patches[0].shape[1]:
            square = (own.transpose(1, 2).unflatten(2, (side, side)) for own in patches)
            patches = [F.adaptive_avg_pool2d(own, grid).flatten(2).transpose(1, 2) for own in square]
        flat = torch.cat([part.flatten(1) for pair in zip(prefixes, patches, strict=True) for part in pair], 1)
        if flat.shape[1] <= 8 * NUMBERS:
            return flat
        if self.projection is None:
            generator = torch.Generator().manual_seed(0)
            random = torch.randn(flat.shape[1], NUMBERS, generator=generator)
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
    """Looks at every image once. No random number is drawn from torch's own generator.

    Args:
        others: normalised images [B, 3, H, W] on the device -> the logits [B, K] of each other model.
        pause: called before every batch; it may raise to stop.

    Raises:
        ValueError: none of the images can be decoded.
    """
    zero_shot = zero_shot.to(device).eval()
    tokens = BlockTokens(zero_shot)
    numbers, features, probabilities, sources = [], [], [], list[str]()
    with torch.random.fork_rng(devices=[]):  # loaders draw a seed
        for batch in watched(source, "predictions"):
            if pause is not None:
                pause()
            images = normalize(batch.pixels.to(device), source.preprocess)
            with tokens:
                logits = [zero_shot(images)]
            own = tokens.take()
            logits += others(images) if others else ()
            features.append(own.half().cpu())
            probabilities.append(torch.stack(logits).float().softmax(-1).half().cpu())
            numbers.append(batch.samples)
            sources += batch.sources
    require(bool(numbers), "none of the split's images can be decoded; check them: must index verify")
    return ImageFeatures(torch.cat(numbers), torch.cat(features), torch.cat(probabilities, 1), sources)


def subsample(source: EvalSource, most: int) -> EvalSource:
    """The same source, with `most` images of the split, evenly spread, if it has more; a process keeps its share."""
    images = len(source)
    if images > most:
        source.numbers = [n for n in source.numbers if n * most // images > (n - 1) * most // images]
    return source
