"""What an image looks like to a judge that training for the classes did not shape: an encoder of its own, else the
middle of the frozen tower, whose final feature would not do: zero-shot's own classes are smooth there by construction.
"""

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.progress import watched
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalBatch, EvalSource
from must.method.model.encoder import load_kept
from must.method.model.folder import Kept
from must.method.model.masked_vit import MaskedViT

TOWER = "the frozen image tower"  # the judge's name where there is no encoder
GRID = 4  # patches a side after pooling
NUMBERS = 512  # an image, after the random projection of a wide tower
WIDE = 2048  # numbers from which an image's tokens are projected


class MiddleTokens:
    """Collects the patch tokens after block L / 2 of a network while it looks at images. Use as a context.

    They are pooled to 4 x 4 patches and, if that makes more than 2,048 numbers, projected to 512 with a fixed matrix.
    With an encoder, `watching` collects what that sees instead.
    """

    def __init__(self, network: MaskedViT, kept: Kept | None = None, device: torch.device | None = None) -> None:
        self.tower, self.device, encoder = network.tower, device, load_kept(kept)
        self.encoder = encoder.to(device) if encoder else None
        self.judge = encoder.name if encoder else TOWER
        self.parts: list[np.ndarray] = []
        self.projection: Tensor | None = None
        blocks = list(self.tower.blocks)
        self.block: Any = blocks[max(len(blocks) // 2, 1) - 1]

    def __enter__(self) -> Self:
        self.hook = self.block.register_forward_hook(self.collect) if self.encoder is None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.hook:
            self.hook.remove()

    def watching(
        self, source: EvalSource, title: str, pause: Callable[[], None] | None = None
    ) -> Iterator[tuple[EvalBatch, Tensor]]:
        """Each batch with its images as the network takes them; `pause` is called before and may raise to stop."""
        for batch in watched(source, title):
            if pause is not None:
                pause()
            pixels = batch.pixels.to(self.device)
            if self.encoder:
                self.parts.append(self.encoder(pixels).cpu().numpy())
            yield batch, normalize(pixels, source.preprocess)

    def collect(self, _module: Any, _inputs: Any, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        self.parts.append(self.reduced(self.tower.patches(tokens).float()).cpu().numpy())

    def reduced(self, patches: Tensor) -> Tensor:
        """Patches [B, L, W] -> float32 [B, D]."""
        side = round(patches.shape[1] ** 0.5)
        if side > GRID and side * side == patches.shape[1]:
            square = patches.transpose(1, 2).unflatten(2, (side, side))
            patches = F.adaptive_avg_pool2d(square, GRID).flatten(2).transpose(1, 2)
        flat = patches.flatten(1)
        if flat.shape[1] <= WIDE:
            return flat
        if self.projection is None:
            generator = torch.Generator().manual_seed(0)
            self.projection = torch.randn(flat.shape[1], NUMBERS, generator=generator) / flat.shape[1] ** 0.5
        return flat @ self.projection.to(flat.device)

    def result(self) -> np.ndarray:
        """Float32 [N, D] of all images seen so far."""
        return np.concatenate(self.parts)
