"""One pass over the images: what the frozen tower sees, and what zero-shot and every rung say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from must.base.errors import UserError
from must.data.loading.loader import EvalSource
from must.method.model.folder import Kept
from must.method.model.masked_vit import MaskedViT
from must.method.select.ladder import RUNGS
from must.method.select.tokens import TOWER, MiddleTokens

MAX_IMAGES, ENOUGH = 20_000, 3_500  # beyond 3,000 z grows no more
PASSES, TRAINING_PASSES = 2 + len(RUNGS), 4
"""Forward passes an image: of the ladder and the look before training, and about those of a training step."""
SHARE = 0.1  # of training that the ladder may cost, where more than ENOUGH images are there
NUMBERS = 20_000_000  # probabilities a rung that are held in memory, where more than ENOUGH images are there

Weights = dict[str, Tensor]


@dataclass
class RungPredictions:
    """N images, R rungs, K classes."""

    numbers: np.ndarray  # int64 [N], numbers in the split
    tokens: np.ndarray  # float32 [N, D], what the judge sees
    probabilities: np.ndarray  # float16 [R + 1, N, K], of zero-shot and each rung
    labels: np.ndarray  # int64 [R + 1, N], the most probable classes
    judge: str = TOWER

    @classmethod
    def joined(cls, parts: Sequence[RungPredictions]) -> RungPredictions:
        """The parts of several processes, in the order of the images' numbers."""
        whole = cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.probabilities for part in parts], axis=1),
            np.concatenate([part.labels for part in parts], axis=1),
            parts[0].judge,
        )
        return whole.only(np.argsort(whole.numbers, kind="stable"))

    def only(self, chosen: np.ndarray) -> RungPredictions:
        """The images at these places, in this order."""
        probabilities, labels = self.probabilities[:, chosen], self.labels[:, chosen]
        return RungPredictions(self.numbers[chosen], self.tokens[chosen], probabilities, labels, self.judge)


def affordable(shown: int, classes: int) -> int:
    """Images that the ladder looks at after a training which was shown so many: 3,500 to 20,000.

    Twelve forward passes each are to be no more than a tenth of the training's work.
    """
    most = min(SHARE * TRAINING_PASSES * shown / PASSES, NUMBERS / classes)
    return round(min(max(most, ENOUGH), MAX_IMAGES))


def subsample(source: EvalSource, most: int = MAX_IMAGES) -> EvalSource:
    """The same source, with `most` images of the split, evenly spread, if it has more; a process keeps its share."""
    of = len(source)
    if of > most:
        source.numbers = [n for n in source.numbers if n * most // of > (n - 1) * most // of]
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
def predict_rungs(
    zero_shot: MaskedViT,
    adapted: Weights,
    source: EvalSource,
    device: torch.device,
    pause: Callable[[], None] | None = None,
    encoder: Kept | None = None,
) -> RungPredictions:
    """Runs zero-shot and every rung on the images. Memory: 2 (R + 1) N K bytes for the probabilities.

    Args:
        adapted: weights of the same network as `zero_shot`.
        pause: called before every batch; it may raise to stop.
        encoder: whose numbers are the tokens, in the place of those of the tower's middle.
    """
    frozen = zero_shot.to(device).eval()
    start = {name: value.detach().to(device) for name, value in frozen.state_dict().items()}
    end = {name: value.detach().to(device) for name, value in adapted.items()}
    moving = copy.deepcopy(frozen)
    middle = MiddleTokens(frozen, encoder, device)
    numbers, probabilities, labels = [], [], []
    for batch, images in middle.watching(source, "look-alikes", pause):
        with middle:
            logits = [frozen(images)]
        for alpha in RUNGS:
            moving.load_state_dict(between(start, end, alpha))
            logits.append(moving(images))
        said = torch.stack(logits).float()
        numbers.append(batch.samples.numpy())
        probabilities.append(said.softmax(-1).half().cpu().numpy())
        labels.append(said.argmax(-1).cpu().numpy())
    if not numbers:
        raise UserError("none of the split's images can be decoded; check them: must index verify")
    every, named = np.concatenate(probabilities, 1), np.concatenate(labels, 1)
    return RungPredictions(np.concatenate(numbers), middle.result(), every, named, middle.judge)
