"""A first look at a stage's inputs, before torch is imported: a wrong path is told in a moment, not after seconds.

What is looked at is read by the functions that the stage itself reads it with, so both say the same in the same words.
A stage called from Python needs no first look: it finds the same faults, later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from must import storage
from must.config import ClassifierConfig, EvaluateConfig, ExportConfig, RefineConfig, TrainConfig
from must.parameters import require


def first_look(command: str, config: Any) -> None:
    """Raises ValueError: something that the stage needs is not there, is damaged, or cannot be written to."""
    if command in LOOKS:
        LOOKS[command](config)


def look_classifier(config: ClassifierConfig) -> None:
    from must.model.classifier import BUNDLED_SET, load_class_set

    if config.classes != BUNDLED_SET:  # that one is open_clip's, which imports torch
        load_class_set(config.classes)
    look_at_output(config.output)


def look_train(config: TrainConfig) -> None:
    from must.format.index import load_index
    from must.model.bundle import load_description
    from must.model.classifier import read_header, require_shares

    load_index(config.shards, config.index_sha256).shards_of(config.split)
    header = read_header(config.classifier)
    if config.class_prior == "given":
        require_shares(header.get("shares"), config.classifier)
    if config.init:
        load_description(config.init)
    look_at_output(config.output)
    if config.checkpoints:
        look_at_output(config.checkpoints, "--checkpoints")


def look_evaluate(config: EvaluateConfig) -> None:
    from must.format.index import load_index
    from must.model.bundle import DESCRIPTION_FILE, load_description
    from must.model.classifier import read_header

    load_description(config.model)
    if config.baseline and not storage.exists(storage.join(config.baseline, DESCRIPTION_FILE)):
        read_header(config.baseline, "--baseline")
    index = load_index(config.shards, config.index_sha256)
    index.shards_of(config.split)
    if config.few_shot:
        index.shards_of(config.few_shot_split)
    look_at_output(config.output)


def look_refine(config: RefineConfig) -> None:
    from must.format.index import load_index
    from must.model.classifier import read_header

    load_index(config.shards, config.index_sha256).shards_of(config.split)
    read_header(config.classifier)
    look_at_output(config.output)


def look_export(config: ExportConfig) -> None:
    from must.format.index import load_index
    from must.model.bundle import load_description

    load_description(config.model)
    if config.shards:
        load_index(config.shards, config.index_sha256).shards_of(config.split)
    look_at_output(config.output)


LOOKS: dict[str, Callable[[Any], None]] = {
    "classifier": look_classifier,
    "train": look_train,
    "refine": look_refine,
    "evaluate": look_evaluate,
    "export": look_export,
}


def look_at_output(uri: str, flag: str = "--output") -> None:
    """Places on this machine only: what a bucket allows is known when it is written to."""
    if storage.is_remote(uri):
        return
    path = storage.local(uri).absolute()
    place = path if path.exists() else next(above for above in path.parents if above.exists())
    require(place == path or place.is_dir(), f"{flag} {uri}: cannot be written: {place} is no folder")
    require(os.access(place, os.W_OK), f"{flag} {uri}: cannot be written: no permission for {place}")
