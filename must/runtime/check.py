"""A run's parameters against what its stages take, before an image is read: names, values, what belongs to which gate.

Used where a run is started and again by the run's first stage. It reads nothing and needs no torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from must.base.parameters import SYNONYMS, StageConfig, require
from must.base.text import brief, did_you_mean
from must.config import ExportConfig, GateConfig, PromoteConfig, ShardConfig, TrainConfig
from must.config.gate import LABEL_FREE
from must.deploy.promote.registry import Registry
from must.method.train.presets import preset

LATER = "-"  # stands for a place that the pipeline gives a stage
OF_TRAINING = ("shards", "index_sha256", "classifier", "output", "checkpoints", "init", "preset", "model", "pretrained")
SERVED = ("none", "write", "apply")  # what becomes of a service for the champion
# KServe's form of a name; it makes a Service of NAME-predictor, whose own name may have 63 characters.
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
NO_PRESET = ("", "auto")  # settings of one's own; settings that follow from the data


def check_run(values: Mapping[str, Any]) -> None:
    """Raises ValueError: a parameter of the pipeline that its stage would refuse. Missing ones are their defaults."""
    check_sharding(values)
    check_training(values)
    check_gate(values.get("gate", "label-free"), values.get("gate_settings") or {})
    with_name("precision", ExportConfig, model=LATER, output=LATER, precision=values.get("precision", "fp32"))
    with_name("triton", ExportConfig, model=LATER, output=LATER, triton=values.get("triton", ""))
    Registry(LATER, values.get("model_name", "model"))
    register = values.get("register", "none")
    with_name("register", PromoteConfig, registry=LATER, name=LATER, model=LATER, onnx=LATER, register=register)
    serve = values.get("serve", "none")
    require(serve in SERVED, f"serve must be one of {', '.join(SERVED)} (got {brief(serve)})")
    if serve != "none":
        check_service_name(values.get("model_name", "model"))


def check_service_name(name: str) -> None:
    """Raises ValueError: no name that an InferenceService may have."""
    require(
        SERVICE_NAME.fullmatch(name) is not None,
        f"model_name {name}: a service needs a name that Kubernetes takes: small letters, digits, '-', a letter first, "
        "at most 53 characters",
    )


def check_sharding(values: Mapping[str, Any]) -> None:
    own = {name: values[name] for name in ("test_source", "labels", "split", "append") if name in values}
    own |= {"source": values.get("source") or LATER, "output": LATER}
    settings = values.get("shard_settings") or {}
    given = sharding_settings(settings, own)
    check_names("shard_settings", underscored(settings), names_of(ShardConfig))
    with_name("shard_settings" if settings else "", ShardConfig, **given)


def check_training(values: Mapping[str, Any]) -> None:
    settings = underscored(values.get("settings") or {})
    for name in OF_TRAINING:
        require(name not in settings, f"settings.{name}: is a parameter of the pipeline or set by it; take it out")
    check_names("settings", settings, [name for name in names_of(TrainConfig) if name not in OF_TRAINING])
    name, epochs = values.get("preset") or "", values.get("epochs") or 0
    require(epochs >= 0, f"epochs {epochs}: passes over the images; 0 leaves it to settings and preset")
    base = preset(name, values.get("model") or "") if name not in NO_PRESET else {}
    given = {**base, **training_settings(settings, name, epochs)}
    del given["preset"]  # it is resolved here: the shards and the classifier file are not there yet
    with_name("settings" if settings else "", TrainConfig, shards=LATER, classifier=LATER, output=LATER, **given)


def check_gate(gate: str, settings: Mapping[str, Any]) -> None:
    """Settings of another gate would be taken and have no effect."""
    given = underscored(settings)
    every = [name for name in names_of(GateConfig) if name not in ("metrics", "output", "gate")]
    with_name("gate", GateConfig, metrics=LATER, gate=gate)
    check_names("gate_settings", given, every)
    free, labelled = set(LABEL_FREE), set(every) - set(LABEL_FREE)
    own = {"label-free": free, "reviewed": free, "labelled": labelled, "none": set()}[gate]  # reviewed: for a champion
    for name in given:
        owner = "label-free" if name in LABEL_FREE else "labelled"
        require(name in own, f"gate_settings.{name}: belongs to the gate '{owner}'; this run has gate '{gate}'")
    with_name("gate_settings", GateConfig, metrics=LATER, gate=gate, **given)


def with_name(where: str, stage: type[StageConfig], **values: Any) -> None:
    """Makes the stage's parameters; an error is told with the pipeline's parameter in front."""
    try:
        stage(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def check_names(where: str, given: Iterable[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{where}.{name}: unknown; {did_you_mean(name, known, SYNONYMS)}")


def names_of(stage: type[StageConfig]) -> list[str]:
    return [field.name for field in fields(stage)]


def underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in settings.items()}


def training_settings(settings: dict[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` that a run of the pipeline gives: `epochs` wins unless it is 0."""
    return {**settings, "preset": preset, **({"epochs": epochs} if epochs else {})}


def sharding_settings(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`: the pipeline's `own`, and others that a run gives.

    Raises:
        ValueError: `settings` has one that the pipeline itself gives.
    """
    own_names = {*own, "part", "run_id"}
    twice = ", ".join(name for name in settings if name.replace("-", "_") in own_names)
    require(not twice, f"shard_settings: {twice}: a parameter of the pipeline or set by it; take it out")
    return own | {name.replace("-", "_"): value for name, value in settings.items()}
