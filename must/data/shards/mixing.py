"""What `must index make` says: what there is, and whether shards in the order of their classes would spoil training."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from must.base import storage
from must.base.text import printable
from must.config import TrainConfig
from must.data.format import index
from must.data.format.index import Index
from must.data.sources.base import not_read

logger = logging.getLogger(__name__)

WINDOW: int = TrainConfig.shuffle_window
MIXED = 1.25  # two images of a window may be of one class so many times as often as any two


def print_found(output: str, uri: str, made: Index, labels: list[tuple[str, Counter[str]]]) -> None:
    for name, counts in made.splits.items():
        labelled = f", {counts['labelled']} labelled" if counts["labelled"] else ""
        logger.info(f"  {printable(name)}: {counts['samples']} images{labelled} in {len(made.shards_of(name))} shards")
    if made.skipped:
        logger.info(f"  other files, not read: {not_read(made.skipped)}")
    if made.rejected:
        logger.info(f"  rejected: {made.rejected}, listed in {storage.join(output, index.REJECTED)}")
        for why, count in made.reasons.items():
            logger.info(f"    {count} x {printable(why)}")
    for split in made.splits:
        if split != "test" and (line := unmixed([counts for name, counts in labels if name == split])):
            logger.info(f"  warning: {split}: {line}; `must shard --source {printable(uri)}` mixes them")
    logger.info(f"index: {storage.join(output, index.NAME)}")


def unmixed(shards: list[Counter[str]]) -> str:
    """What the classes' order will do to training, or "" for shards that are mixed well enough, or without labels.

    Compares how often two images are of one class: of one shard, of a window of shards as training shuffles them
    together, of all.
    """
    inside = [pairs(labels) for labels in shards if sum(labels.values()) > 1]
    if len(shards) <= WINDOW or not inside:
        return ""
    shard, everywhere = float(np.mean(inside)), pairs(sum(shards, Counter()))
    window = shard / WINDOW + (1 - 1 / WINDOW) * everywhere
    if window <= MIXED * everywhere:
        return ""
    return (
        f"the images are in the order of their classes: two of one shard are of one class in {shard:.0%} of cases, any "
        f"two in {everywhere:.1%}; training shuffles {WINDOW} shards together, of which it is {window:.1%}"
    )


def pairs(labels: Counter[str]) -> float:
    """How often two different images are of one class."""
    total = sum(labels.values())
    return sum(count * (count - 1) for count in labels.values()) / (total * (total - 1))
