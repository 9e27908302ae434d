"""A run's parameters against what its stages take, before an image is read: names, values, what belongs to which gate.

Used where a run is started and again by the run's first stage. It reads nothing and needs no torch.
"""

import re
from collections.abc import Mapping
from typing import Any

from must.base.parameters import require, settings_of, with_name
from must.base.text import brief
from must.config import ExportConfig, GateConfig, PromoteConfig, ShardConfig, TrainConfig
from must.config.gate import LABEL_FREE
from must.deploy.promote.registry import Registry
from must.method.train.presets import AUTO, published

OF_SHARDING = ("source", "test_source", "labels", "split", "append", "output", "part", "run_id")
OF_TRAINING = ("shards", "index_sha256", "classifier", "output", "checkpoints", "preset", "model", "pretrained")
SERVED = ("none", "write", "apply")  # what becomes of a service for the champion
# KServe's form of a name; it makes a Service of NAME-predictor, whose own name may have 63 characters.
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")


def check_run(values: Mapping[str, Any]) -> None:
    """Raises ValueError: a parameter of the pipeline that its stage would refuse. Missing ones are their defaults."""
    name = values.get("model_name", "model")
    check_sharding(values)
    check_training(values)
    check_gate(values.get("gate", "label-free"), values.get("gate_settings") or {})
    with_name("precision", ExportConfig, precision=values.get("precision", "fp32"))
    Registry("-", name)
    with_name("register", PromoteConfig, model="-", onnx="-", register=values.get("register", "none"))
    serve = values.get("serve", "none")
    require(serve in SERVED, f"serve must be one of {', '.join(SERVED)} (got {brief(serve)})")
    if serve != "none":
        check_service_name(name)


def check_service_name(name: str) -> None:
    """Raises ValueError: no name that an InferenceService may have."""
    require(
        SERVICE_NAME.fullmatch(name) is not None,
        f"model_name {name}: a service needs a name that Kubernetes takes: small letters, digits, '-', a letter first, "
        "at most 53 characters",
    )


def check_sharding(values: Mapping[str, Any]) -> None:
    own = {name: values[name] for name in OF_SHARDING if values.get(name) is not None}
    settings = values.get("shard_settings") or {}
    with_name("shard_settings" if settings else "", ShardConfig, **sharding_settings(settings, own))


def check_training(values: Mapping[str, Any]) -> None:
    settings = settings_of(TrainConfig, values.get("settings") or {}, "settings", OF_TRAINING)
    name, epochs = values.get("preset") or "", values.get("epochs") or 0
    require(epochs >= 0, f"epochs {epochs}: passes over the images; 0 leaves it to settings and preset")
    if name not in ("", AUTO):
        published(name, values.get("model") or "")
    with_name("settings" if settings else "", TrainConfig, **training_settings(settings, name, epochs))


def check_gate(gate: str, settings: Mapping[str, Any]) -> None:
    """Settings of another gate would be taken and have no effect."""
    with_name("gate", GateConfig, gate=gate)
    given = settings_of(GateConfig, settings, "gate_settings", ("metrics", "model", "output", "gate"))
    for name in given:
        owner = "label-free" if name in LABEL_FREE else "labelled"
        fits = gate == owner or (gate == "reviewed" and owner == "label-free")  # for a champion
        require(fits, f"gate_settings.{name}: belongs to the gate '{owner}'; this run has gate '{gate}'")
    with_name("gate_settings", GateConfig, gate=gate, **given)


def training_settings(settings: dict[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` that a run of the pipeline gives: `epochs` wins unless it is 0."""
    return {**settings, "preset": preset, **({"epochs": epochs} if epochs else {})}


def sharding_settings(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`: the pipeline's `own`, and others that a run gives. Raises ValueError: there is no
    such, or it is one that the pipeline itself gives."""
    return own | settings_of(ShardConfig, settings, "shard_settings", OF_SHARDING)
