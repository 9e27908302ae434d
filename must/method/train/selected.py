"""`must train --select ladder`: after training, what of it is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch

from must.base import storage
from must.config import TrainConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import ShardReader
from must.method.model.bundle import Description, preprocess_of, save_bundle
from must.method.model.masked_vit import MaskedViT
from must.method.select.choose import shares_of
from must.method.select.rung_predictions import Weights, affordable
from must.method.select.select import described, keep, told

BATCH = 256  # images a forward pass
ADAPTED = "adapted"  # folder in OUTPUT for the other end of the way, where the ladder could not decide about it


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

    Where the ladder leaves a part of the way undecided, the bundle OUTPUT/adapted holds its other end, which `must
    review` and `must select` go on from.

    Args:
        reader: the one that was trained with: shards that were added since do not count.

    The process that calls this looks alone. It is a function of the weights and the images: a run that was killed
    here and goes on chooses the same.
    """
    source = EvalSource(reader, preprocess_of(description), BATCH, config.loaders)
    most = affordable(len(source) * config.epochs, len(description.classes))
    kept, choice = keep(zero_shot, weights, source, device, pause, shares_of(description), most)
    print(told(choice), flush=True)
    adapted = storage.join(config.output, ADAPTED)
    if choice.climb.undecided:
        zero_shot.load_state_dict(weights)
        save_bundle(adapted, zero_shot, description)
        print(f"  all of the adaptation is kept beside it: {adapted}", flush=True)
    else:  # of an earlier run
        storage.delete_folder(adapted)
    return kept, described(description, choice, own_factor)
