"""How the loader is fed: the views a run asks for, and micro-batches grouped into steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from must.config import TrainConfig
from must.data.augment.exact import ViewSettings
from must.data.image.preprocess import Preprocess
from must.data.loading.loader import TrainBatch


def grouped(batches: Iterable[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
    """Lists of `size` batches, the micro-batches of a step."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def view_settings(config: TrainConfig, preprocess: Preprocess, patch_size: int) -> ViewSettings:
    return ViewSettings(
        preprocess=preprocess,
        patch_size=patch_size,
        mask_patch_size=config.mask_patch_size,
        mask_ratio=config.mask_ratio,
        weak_padding=config.weak_padding,
        strong_scale=(config.strong_scale[0], config.strong_scale[1]),
        flip=config.flip,
        randaugment=config.randaugment,
        randaugment_ops=tuple(config.randaugment_ops),
    )
