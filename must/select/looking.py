"""One pass over the images: what the frozen tower sees, and what zero-shot and every rung say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from must.augment.normalize import normalize
from must.data.loader import EvalBatch, EvalSource
from must.image.preprocess import Preprocess
from must.model.masked_vit import MaskedViT
from must.select.ladder import RUNGS
from must.select.tokens import MiddleTokens

MAX_IMAGES = 20_000

Weights = dict[str, Tensor]


@dataclass
class Looks:
    """N images, R rungs, K classes."""

    numbers: np.ndarray  # int64 [N], numbers in the split
    tokens: np.ndarray  # float32 [N, D], of the frozen tower's middle
    probabilities: np.ndarray  # float16 [R + 1, N, K], of zero-shot and each rung
    labels: np.ndarray  # int64 [R + 1, N], the most probable classes

    @classmethod
    def joined(cls, parts: Sequence[Looks]) -> Looks:
        """Of several processes, in the order of the images' numbers."""
        whole = cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.probabilities for part in parts], axis=1),
            np.concatenate([part.labels for part in parts], axis=1),
        )
        return whole.only(np.argsort(whole.numbers, kind="stable"))

    def only(self, chosen: np.ndarray) -> Looks:
        """Of the images with these places, in this order."""
        return Looks(self.numbers[chosen], self.tokens[chosen], self.probabilities[:, chosen], self.labels[:, chosen])


def thinned(source: EvalSource, most: int = MAX_IMAGES) -> EvalSource:
    """The same source, with every n-th image of this process's share if the split has more than `most`."""
    source.numbers = source.numbers[:: -(-len(source) // most)]
    return source


def between(start: Weights, end: Weights, alpha: float) -> Weights:
    """start + alpha (end - start); at 0 and 1 the very bits of the two."""
    if alpha in (0, 1):
        return end if alpha else start
    return {
        name: torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else value
        for name, value in start.items()
    }


@torch.inference_mode()
def look(
    zero_shot: MaskedViT,
    adapted: Weights,
    source: Iterable[EvalBatch],
    preprocess: Preprocess,
    device: torch.device,
    alphas: Sequence[float] = RUNGS,
    pause: Callable[[], None] | None = None,
) -> Looks:
    """Runs zero-shot and every rung on the images. Memory: 2 (R + 1) N K bytes for the probabilities.

    Args:
        adapted: weights of the same network as `zero_shot`.
        pause: called before every batch; it may raise to stop.
    """
    frozen = zero_shot.to(device).eval()
    start = {name: value.detach().to(device) for name, value in frozen.state_dict().items()}
    end = {name: value.detach().to(device) for name, value in adapted.items()}
    moving = copy.deepcopy(frozen)
    middle = MiddleTokens(frozen)
    numbers, probabilities, labels = [], [], []
    for batch in source:
        if pause is not None:
            pause()
        images = normalize(batch.pixels.to(device), preprocess)
        with middle:
            logits = [frozen(images)]
        for alpha in alphas:
            moving.load_state_dict(between(start, end, alpha))
            logits.append(moving(images))
        said = torch.stack(logits).float()
        numbers.append(batch.samples.numpy())
        probabilities.append(said.softmax(-1).half().cpu().numpy())
        labels.append(said.argmax(-1).cpu().numpy())
    if not numbers:
        raise ValueError("none of the split's images can be decoded; check them: must index verify")
    return Looks(np.concatenate(numbers), middle.result(), np.concatenate(probabilities, 1), np.concatenate(labels, 1))
