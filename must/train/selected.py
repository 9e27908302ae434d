"""`must train --select ladder`: after training, what of it is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch

from must.config import TrainConfig
from must.data.loader import EvalSource
from must.data.reader import ShardReader
from must.model.bundle import Description, preprocess_of
from must.model.masked_vit import MaskedViT
from must.select.choose import shares_of
from must.select.rung_predictions import Weights, affordable
from must.select.select import described, keep, told

BATCH = 256  # images a forward pass


def selected(
    config: TrainConfig,
    reader: ShardReader,
    zero_shot: MaskedViT,
    weights: Weights,
    description: Description,
    own_factor: float,
    device: torch.device,
    pause: Callable[[], None],
) -> tuple[Weights, Description]:
    """The weights that become the model, and its description with the reasons, by the training split's images.

    Args:
        reader: the one that was trained with: shards that were added since do not count.

    The process that calls this looks alone. It is a function of the weights and the images: a run that was killed
    here and goes on chooses the same.
    """
    source = EvalSource(reader, preprocess_of(description), BATCH, config.loaders)
    most = affordable(len(source) * config.epochs, len(description.classes))
    kept, choice = keep(zero_shot, weights, source, device, pause, shares_of(description), most)
    print(told(choice), flush=True)
    return kept, described(description, choice, own_factor)
