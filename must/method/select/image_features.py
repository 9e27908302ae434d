"""One pass of the frozen zero-shot model over unlabeled images: what it sees in them, without a judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from must.data.loading.loader import EvalSource
from must.method.model.folder import Kept
from must.method.model.masked_vit import MaskedViT
from must.method.select.tokens import TOWER, MiddleTokens


@dataclass
class ImageFeatures:
    """N images that could be decoded."""

    numbers: np.ndarray  # int64 [N], in the split
    tokens: np.ndarray  # float32 [N, T], what the judge sees
    features: np.ndarray  # float32 [N, D], unit vectors
    sources: list[str]
    judge: str = TOWER

    @classmethod
    def joined(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The parts of several processes, in the order of the images' numbers."""
        full = [part for part in parts if len(part.numbers)] or list(parts[:1])
        numbers = np.concatenate([part.numbers for part in full])
        order = np.argsort(numbers, kind="stable")
        sources = [source for part in full for source in part.sources]
        return cls(
            numbers[order],
            np.concatenate([part.tokens for part in full])[order],
            np.concatenate([part.features for part in full])[order],
            [sources[place] for place in order],
            parts[0].judge,
        )

    def probabilities(self, weights: np.ndarray, factor: float) -> np.ndarray:
        """Float32 [N, K] of a classifier [D, K], whose cosines are multiplied by `factor`."""
        return softmax(factor * (self.features @ weights))


@torch.inference_mode()
def extract_features(
    zero_shot: MaskedViT,
    source: EvalSource,
    device: torch.device,
    pause: Callable[[], None] | None = None,
    encoder: Kept | None = None,
) -> ImageFeatures:
    """Looks at every image once. No random number is drawn from torch's own generator.

    Args:
        zero_shot: in eval mode; it is moved to the device.
        pause: called before every batch; it may raise to stop.
        encoder: whose numbers are the tokens, in the place of those of the tower's middle.
    """
    network = zero_shot.to(device)
    middle = MiddleTokens(network, encoder, device)
    numbers, features, sources = [], [], []
    with torch.random.fork_rng(devices=[]):  # loaders draw a seed
        for batch, images in middle.watching(source, "look", pause):
            with middle:
                tokens, _ = network.tower.forward_features(images, lambda patches: patches, None)
            features.append(F.normalize(network.tower.feature(tokens).float(), dim=-1).cpu().numpy())
            numbers.append(batch.samples.numpy())
            sources += batch.sources
    if not numbers:
        nothing = np.zeros((0, 0), np.float32)
        return ImageFeatures(np.zeros(0, np.int64), nothing, nothing, [])
    return ImageFeatures(np.concatenate(numbers), middle.result(), np.concatenate(features), sources, middle.judge)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    values = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)
