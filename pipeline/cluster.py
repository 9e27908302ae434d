"""What the platform team decides once: cluster.yaml, read strictly. pipeline/cluster.yaml explains every key."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from components.images import IMAGES
from must import __version__
from must.parameters import convert

STAGES = ("inputs", "shard", "classifier", "champion", "train", "evaluate", "export", "gate", "promote", "summary")
"""The pipeline's stages; train may be the launcher of a TrainJob."""
WITH_LOADERS = ("train", "evaluate", "export", "gate")
"""PyTorch's loader processes hand tensors over in /dev/shm."""


@dataclass(frozen=True)
class Toleration:
    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


@dataclass(frozen=True)
class CpuPool:
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)


@dataclass(frozen=True)
class GpuPool:
    count: int = 0  # a node, for training; 0: train on CPUs
    accelerator: str = "nvidia.com/gpu"
    stages: list[str] = field(default_factory=lambda: ["train"])
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)


@dataclass(frozen=True)
class Resources:
    cpu: str = ""
    memory: str = ""
    cpu_limit: str = ""
    memory_limit: str = ""


@dataclass(frozen=True)
class Credentials:
    kind: Literal["none", "workload-identity", "secret"] = "none"
    secret: str = ""
    key: str = "key.json"


@dataclass(frozen=True)
class Volume:
    claim: str = ""
    mount: str = ""


@dataclass(frozen=True)
class Retries:
    count: int = 3
    backoff: int = 60
    factor: int = 2  # Argo takes no fraction
    window: int = 604_800  # a week


@dataclass(frozen=True)
class Training:
    nodes: int = 1
    processes: str = "auto"
    as_: Literal["", "pod", "trainjob"] = ""  # `as` in the file
    runtime: str = "must-torch"


@dataclass(frozen=True)
class Cluster:
    registry: str = ""
    tag: str = __version__
    digests: dict[str, str] = field(default_factory=dict)
    pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    pull_secrets: list[str] = field(default_factory=list)
    namespace: str = ""
    service_account: str = ""
    credentials: Credentials = field(default_factory=Credentials)
    labels: dict[str, str] = field(default_factory=dict)
    cpu: CpuPool = field(default_factory=CpuPool)
    gpu: GpuPool = field(default_factory=GpuPool)
    resources: dict[str, Resources] = field(default_factory=dict)
    shm: str = ""
    volume: Volume = field(default_factory=Volume)
    retries: Retries = field(default_factory=Retries)
    timeouts: dict[str, int] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    tensorboard: str = ""

    def image(self, name: str) -> str:
        """The full name of one of components/images.py's images."""
        place = f"{self.registry.rstrip('/')}/{name}" if self.registry else name
        return f"{place}@{self.digests[name]}" if name in self.digests else f"{place}:{self.tag}"

    @property
    def trains_in_trainjob(self) -> bool:
        return self.training.nodes > 1 or self.training.as_ == "trainjob"

    def uses_gpu(self, stage: str) -> bool:
        return self.gpu.count > 0 and stage in self.gpu.stages


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: a key that is not known (the nearest known one is given), a wrong value, a contradiction."""
    from pipeline.cluster_rules import check

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"--cluster {path}: no such file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--cluster {path}: no valid YAML: {' '.join(str(error).split())}") from None
    cluster = build(Cluster, content or {}, "")
    check(cluster)
    return cluster


def build(kind: Any, content: Any, where: str) -> Any:
    """`content` as the dataclass `kind`; `where` is its place in the file."""
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'the file'}: expected 'name: value' lines, got '{content}'")
    fields = {name.rstrip("_"): (name, hint) for name, hint in typing.get_type_hints(kind).items()}
    for name in content:
        if name not in fields:
            raise ValueError(f"{join(where, str(name))}: unknown key; {nearest(str(name), list(fields))}")
    values = {}
    for name, value in content.items():
        field_name, hint = fields[name]
        values[field_name] = value_of(hint, value, join(where, name))
    return kind(**values)


def value_of(kind: Any, value: Any, where: str) -> Any:
    if value is None:
        raise ValueError(f"{where}: has no value; leave the line out for the default")
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list and dataclasses.is_dataclass(arguments[0]):
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got '{value}'")
        return [build(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected 'name: value' lines, got '{value}'")
        known = {"resources": STAGES, "timeouts": STAGES, "digests": IMAGES}.get(where)
        for name in value:
            if known and name not in known:
                raise ValueError(f"{join(where, str(name))}: unknown; {nearest(str(name), known)}")
        return {str(name): value_of(arguments[1], item, join(where, str(name))) for name, item in value.items()}
    if kind is str and isinstance(value, bool):
        raise ValueError(f"{where}: expected text, got '{str(value).lower()}'; put it in quotes")
    return convert(value, kind, where)


def nearest(name: str, known: typing.Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


def join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
