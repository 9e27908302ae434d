"""Preflight checks of a stage's inputs, before torch is imported: a wrong path is reported at once, not after seconds.

What is looked at is read by the functions that the stage itself reads it with, so both say the same in the same words.
A stage called from Python needs no first look: it finds the same faults, later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.config import (
    ClassifierConfig,
    EvaluateConfig,
    ExportConfig,
    PlanConfig,
    RefineConfig,
    SelectConfig,
    TrainConfig,
)
from must.config.trackers import require_packages


def preflight(command: str, config: Any) -> None:
    """Raises ValueError: something that the stage needs is not there, is damaged, or cannot be written to."""
    if command in LOOKS:
        LOOKS[command](config)


def check_classifier(config: ClassifierConfig) -> None:
    from must.method.model.classifier import BUNDLED_SET, load_class_set

    if config.classes != BUNDLED_SET:  # that one is open_clip's, which imports torch
        load_class_set(config.classes)
    check_output(config.output)
    if config.model_store:
        check_output(config.model_store, "--model-store")


def check_train(config: TrainConfig) -> None:
    check_plan(config)
    require_packages(config.trackers)
    check_output(config.output)
    if config.checkpoints:
        check_output(config.checkpoints, "--checkpoints")


def check_plan(config: TrainConfig) -> None:
    from must.data.format.index import load_index
    from must.method.model.bundle import load_description
    from must.method.model.classifier import read_header, require_shares
    from must.method.model.folder import require_model

    load_index(config.shards, config.index_sha256).shards_of(config.split)
    header = read_header(config.classifier)
    if not (config.model or config.pretrained):
        require_model(header["model_folder"])
    if config.class_prior == "given":
        require_shares(header.get("shares"), config.classifier)
    if config.init:
        load_description(config.init)
    if isinstance(config, PlanConfig) and config.json:
        check_output(config.json, "--json")


def check_evaluate(config: EvaluateConfig) -> None:
    from must.data.format.index import load_index
    from must.method.model.bundle import DESCRIPTION_FILE, load_description
    from must.method.model.classifier import read_header
    from must.method.model.folder import require_model

    load_description(config.model)
    if config.baseline and not storage.exists(storage.join(config.baseline, DESCRIPTION_FILE)):
        require_model(read_header(config.baseline, "--baseline")["model_folder"])
    index = load_index(config.shards, config.index_sha256)
    index.shards_of(config.split)
    if config.few_shot:
        index.shards_of(config.few_shot_split)
    check_output(config.output)


def check_refine(config: RefineConfig) -> None:
    from must.data.format.index import load_index
    from must.method.model.classifier import read_header
    from must.method.model.folder import require_model

    load_index(config.shards, config.index_sha256).shards_of(config.split)
    require_model(read_header(config.classifier)["model_folder"])
    check_output(config.output)


def check_select(config: SelectConfig) -> None:
    from must.data.format.index import load_index
    from must.method.answers.decided import decided
    from must.method.model.bundle import WEIGHTS_FILE, load_description
    from must.method.model.classifier import read_header
    from must.method.model.folder import require_model

    load_description(config.model)
    require_model(read_header(config.baseline, "--baseline")["model_folder"])
    load_index(config.shards).shards_of(config.split)
    if config.answers:
        decided(config.answers, storage.join(config.model, WEIGHTS_FILE))
    check_output(config.output)


def check_export(config: ExportConfig) -> None:
    from must.data.format.index import load_index
    from must.method.model.bundle import load_description
    from must.method.model.classifier import read_header
    from must.method.model.folder import require_model

    load_description(config.model)
    if config.classifier:
        require_model(read_header(config.classifier)["model_folder"])
    if config.shards:
        load_index(config.shards, config.index_sha256).shards_of(config.split)
    check_output(config.output)


LOOKS: dict[str, Callable[[Any], None]] = {
    "classifier": check_classifier,
    "plan": check_plan,
    "train": check_train,
    "refine": check_refine,
    "select": check_select,
    "evaluate": check_evaluate,
    "export": check_export,
}


def check_output(uri: str, flag: str = "--output") -> None:
    """Places on this machine only: what a bucket allows is known when it is written to."""
    if storage.is_remote(uri):
        return
    path = storage.local(uri).absolute()
    place = path if path.exists() else next(above for above in path.parents if above.exists())
    require(place == path or place.is_dir(), f"{flag} {uri}: cannot be written: {place} is no folder")
    require(os.access(place, os.W_OK), f"{flag} {uri}: cannot be written: no permission for {place}")
