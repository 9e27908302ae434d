"""The content of cluster.yaml, whose keys the one in pipeline/ explains; refuses contradictions in it, and values that
Kubernetes would refuse later."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal

from must import __version__
from must.base.parameters import convert_fields, read_mapping, require
from must.base.text import remove_secrets, suggest_name
from must.table import IMAGES, PODS


@dataclass(frozen=True)
class Toleration:
    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


@dataclass(frozen=True)
class NodePool:
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)


@dataclass(frozen=True)
class GpuPool(NodePool):
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
class ClusterConfig:
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
    cpu: NodePool = field(default_factory=NodePool)
    gpu: GpuPool = field(default_factory=GpuPool)
    resources: dict[str, Resources] = field(default_factory=dict)
    shm: str = ""
    volume: Volume = field(default_factory=Volume)
    retries: Retries = field(default_factory=Retries)
    timeouts: dict[str, int] = field(default_factory=dict)
    shard: Sharding = field(default_factory=Sharding)
    label: Sharding = field(default_factory=Sharding)
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


VARIABLE = re.compile(r"(?!MUST_|PET_)[A-Za-z_]\w*", re.ASCII)
SECRET = re.compile(r"(?i).*(secret|password|token|_key|connection_string)")  # the end of a variable's name
OF_THE_SYSTEM = "tmp|dev|proc|sys|etc|usr|s?bin|lib(32|64)?|root|run|var/run|opt/must|kfp-launcher"
FORMS = {  # what a value must be, and what is said of another one
    "tag": (r"\w[\w.-]{0,127}", "is no image tag"),
    "registry": (
        r"([a-z0-9._-]+(:\d+)?(/[a-z0-9._-]+)*/?)?",
        "is no registry, such as ghcr.io/team/must, in small letters and without https://",
    ),
    "cpu": (r"(\d+(\.\d+)?|\d+m)?", "expected 4, 0.5 or 500m"),
    "memory": (r"(\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?)?", "expected an amount of memory, such as 16Gi"),
    "processes": (r"auto|0*[1-9]\d*", "a number of processes a node, or auto for one a GPU"),
    "mount": (
        rf"((?!/(opt|var)?/*$)(?!/({OF_THE_SYSTEM})(/|$))/(?!.*:)(?!(.*/)?\.\.(/|$)).*)?",
        "expected a folder such as /data, and none of the system or the image, such as /tmp, /dev/shm or /opt/must",
    ),
}
SHORT = 8  # characters of a value that is no secret, such as a switch
MAX_PODS = 500  # Argo keeps the state of all pods of a run in one object, which etcd limits to about a megabyte
LEAST = {
    "gpu.count": 0, "training.nodes": 1, "shard.pods": 1, "label.pods": 1, "retries.count": 0,
    "retries.backoff": 0, "retries.factor": 1,
}  # fmt: skip
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def load_cluster(path: Path) -> ClusterConfig:
    """Raises ValueError: an unknown key (with the nearest known one), a wrong value, a contradiction. What Kubernetes
    itself refuses, such as a wrong character of a label, is not looked at."""
    cluster: ClusterConfig = convert_fields(read_mapping(path, f"--cluster {path}"), ClusterConfig, "")
    for key, known in (("resources", list(PODS)), ("timeouts", list(PODS)), ("digests", list(IMAGES))):
        for name in getattr(cluster, key):
            require(name in known, f"{key}.{name}: unknown; {suggest_name(name, known)}")
    for key, text, form in list_values(cluster):
        require(re.fullmatch(FORMS[form][0], text, re.ASCII) is not None, f"{key} '{text}': {FORMS[form][1]}")
    for ok, message in list_rules(cluster):
        require(ok, message)
    return cluster


def list_values(cluster: ClusterConfig) -> Iterator[tuple[str, str, str]]:
    """(key, text, which of FORMS)."""
    yield "tag", cluster.tag, "tag"
    yield "registry", cluster.registry, "registry"
    yield "shm", cluster.shm, "memory"
    yield "training.processes", cluster.training.processes, "processes"
    yield "volume.mount", cluster.volume.mount, "mount"
    for stage, resources in cluster.resources.items():
        for name, text in vars(resources).items():
            yield f"resources.{stage}.{name}", text, name.removesuffix("_limit")


def list_rules(cluster: ClusterConfig) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is said if not): ranges, and values that contradict one another."""
    credentials, volume, gpu, retries = cluster.credentials, cluster.volume, cluster.gpu, cluster.retries
    training, key_file = cluster.training, credentials.kind == "secret"
    for key, least in LEAST.items():
        yield attrgetter(key)(cluster) >= least, f"{key} {attrgetter(key)(cluster)}: must be at least {least}"
    for key in ("shard.pods", "label.pods"):
        yield attrgetter(key)(cluster) <= MAX_PODS, f"{key}: at most {MAX_PODS}"
    yield cluster.tag != "latest", "tag 'latest': may name another image during a run; give a version"
    yield key_file == bool(credentials.secret), "credentials: kind secret and the name of the Secret go together"
    yield bool(volume.claim) == bool(volume.mount), "volume: claim and mount go together"
    for key, name in [("credentials.variable", credentials.variable), *(("env", name) for name in cluster.env)]:
        own = (
            f"{key} '{name}': is no name of an environment variable, or begins with MUST_ or PET_ as the pipeline's own"
        )
        yield VARIABLE.fullmatch(name) is not None, own
    for name, value in cluster.env.items():
        yield (
            remove_secrets(value) == value
            and (not SECRET.fullmatch(name) or len(value) < SHORT or value.startswith("/")),
            f"env '{name}': would be in the compiled file for everybody to read; give the pods a key file "
            "(credentials.kind: secret), or the service account a cloud identity",
        )
    able = ", ".join(name for name, row in PODS.items() if row.gpu)
    for stage in gpu.stages:
        yield stage in PODS, f"gpu.stages '{stage}': unknown; {suggest_name(stage, list(PODS))}"
        yield PODS[stage].gpu, f"gpu.stages '{stage}': does not use a GPU; these do: {able}"
    for stage, seconds in cluster.timeouts.items():
        yield seconds > 0, f"timeouts.{stage} {seconds}: seconds above 0; leave it out for no limit"
    longest = max([retries.backoff, *cluster.timeouts.values()])
    yield (
        retries.count == 0 or retries.window > longest,
        f"retries.window {retries.window} contradicts {longest} s in timeouts or retries.backoff: it is counted from "
        "the first try's start, so a stage that fails later would not be tried again",
    )
    yield (
        training.nodes == 1 or training.as_ != "pod",
        f"training.as pod contradicts training.nodes {training.nodes}: several nodes are a TrainJob",
    )
    yield (
        training.processes == "auto" or not gpu.count or int(training.processes) <= gpu.count,
        f"training.processes {training.processes} contradicts gpu.count {gpu.count}: a process needs a GPU of its own",
    )
    yield (
        not cluster.trains_in_trainjob or "train" in gpu.stages or not gpu.count,
        "gpu.stages without train contradicts training.nodes or training.as: a TrainJob's nodes are for training",
    )


def parse_quantity(text: str) -> float:
    """Of cores, or bytes, in the forms `cpu` and `memory`."""
    number = re.match(r"[\d.]+", text)
    assert number
    return float(number[0]) * UNITS[text[number.end() :]]
