"""The content of cluster.yaml; the one in pipeline/ explains every key."""

from dataclasses import dataclass, field
from typing import Literal

from must import __version__


@dataclass(frozen=True)
class Toleration:
    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


@dataclass(frozen=True)
class Pool:
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)


@dataclass(frozen=True)
class GpuPool(Pool):
    count: int = 0  # per node, for training; 0: train on CPUs
    accelerator: str = "nvidia.com/gpu"
    stages: list[str] = field(default_factory=lambda: ["train"])


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
    variable: str = "GOOGLE_APPLICATION_CREDENTIALS"


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
    policy: Literal["", "Always", "OnFailure", "OnError", "OnTransientError"] = ""


@dataclass(frozen=True)
class Training:
    nodes: int = 1
    processes: str = "auto"
    as_: Literal["", "pod", "trainjob"] = ""  # `as` in the file
    runtime: str = "must-torch"


@dataclass(frozen=True)
class Sharding:
    pods: int = 1


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
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    cpu: Pool = field(default_factory=Pool)
    gpu: GpuPool = field(default_factory=GpuPool)
    resources: dict[str, Resources] = field(default_factory=dict)
    shm: str = ""
    volume: Volume = field(default_factory=Volume)
    retries: Retries = field(default_factory=Retries)
    timeouts: dict[str, int] = field(default_factory=dict)
    shard: Sharding = field(default_factory=Sharding)
    training: Training = field(default_factory=Training)

    def image(self, name: str) -> str:
        """The full name of one of IMAGES."""
        repository = f"{self.registry.rstrip('/')}/{name}" if self.registry else name
        return f"{repository}@{self.digests[name]}" if name in self.digests else f"{repository}:{self.tag}"

    @property
    def trains_in_trainjob(self) -> bool:
        return self.training.nodes > 1 or self.training.as_ == "trainjob"

    @property
    def training_processes(self) -> int:
        """Of all nodes together."""
        gpus = self.gpu.count if self.trains_in_trainjob or self.uses_gpu("train") else 0
        return self.training.nodes * (
            max(1, gpus) if self.training.processes == "auto" else int(self.training.processes)
        )

    def uses_gpu(self, stage: str) -> bool:
        return self.gpu.count > 0 and stage in self.gpu.stages
