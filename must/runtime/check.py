"""Checks a run's parameters before an image is read: names, values, and which settings belong to which gate.

It is called when a run is started and again by the run's first stage. It reads no files and needs no torch."""

from collections.abc import Mapping
from typing import Any

from must.api.preflight import check_device
from must.base.parameters import require, require_settings, with_name
from must.config import ExportConfig, GateConfig, ShardConfig, TrainConfig
from must.deploy.promote.registry import Registry
from must.method.train.recipe import AUTO, published

OF_SHARDING = ("source", "test_source", "labels", "split", "append", "output", "part")
OF_TRAINING = (
    "shards",
    "index_sha256",
    "classifier",
    "output",
    "checkpoints",
    "preset",
    "model",
    "pretrained",
    "split",
)
TRAIN = "train"  # the split that the pipeline trains on and exports with


def check_run(values: Mapping[str, Any]) -> None:
    """Refuses what a stage would refuse of the pipeline's parameters. Missing parameters have their defaults."""
    for name in ("source", "classes", "work_uri"):
        require(values.get(name) != "", f"{name} is empty")
    name = values.get("model_name", "model")
    sharding = check_sharding(values)
    require(sharding.split.get(TRAIN, 0) > 0, f"split: the pipeline trains on the split {TRAIN}; give it a share")
    check_training(values)
    check_gate(values.get("gate", "auto"), values.get("gate_settings") or {})
    require(  # the shards that are there may have labels
        values.get("gate") != "labelled" or sharding.labels != "none" or sharding.append,
        "gate labelled: there will be no labels; give test_source and labels, or gate: auto",
    )
    with_name("precision", ExportConfig, precision=values.get("precision", "fp32"))
    Registry("-", name)


def check_sharding(values: Mapping[str, Any]) -> ShardConfig:
    """The parameters of the stage shard."""
    parameters = {name: values[name] for name in OF_SHARDING if values.get(name) is not None}
    settings = values.get("shard_settings") or {}
    return with_name("shard_settings" if settings else "", ShardConfig, **sharding_settings(settings, parameters))


def check_training(values: Mapping[str, Any]) -> TrainConfig:
    """The parameters of the stage train, without its preset's."""
    settings = require_settings(TrainConfig, values.get("settings") or {}, "settings", OF_TRAINING)
    name, epochs = values.get("preset") or "", values.get("epochs") or 0
    require(epochs >= 0, f"epochs {epochs}: passes over the images; 0 leaves it to settings and preset")
    if name not in ("", AUTO):
        published(name, values.get("model") or "")
    config = with_name("settings" if settings else "", TrainConfig, **training_settings(settings, name, epochs))
    check_device(config.device)
    return config


def check_gate(gate: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError: wrong settings, or settings of another gate, which would have no effect."""
    with_name("gate", GateConfig, gate=gate)
    values = require_settings(GateConfig, settings, "gate_settings", ("metrics", "model", "output", "gate"))
    for name in values:
        applies = gate in ("auto", "labelled")
        require(applies, f"gate_settings.{name}: belongs to the gates auto and labelled; this run has gate '{gate}'")
    with_name("gate_settings", GateConfig, gate=gate, **values)


def training_settings(settings: Mapping[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` in a run of the pipeline. `epochs`, unless it is 0, overrides the settings."""
    return {**with_underscores(settings), "preset": preset, **({"epochs": epochs} if epochs else {})}


def with_underscores(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings by the names of parameters; people also write them as flags, min-gain."""
    return {str(name).replace("-", "_"): value for name, value in (settings or {}).items()}


def sharding_settings(settings: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`: those of the pipeline, and the run's settings."""
    return parameters | require_settings(ShardConfig, settings, "shard_settings", OF_SHARDING)
