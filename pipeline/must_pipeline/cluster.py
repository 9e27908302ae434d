"""The content of cluster.yaml, whose keys the one in pipeline/ explains; refuses contradictions in it, and values that
Kubernetes would refuse later."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from must import __version__
from must.base.parameters import convert_fields, read_mapping, require
from must.base.text import remove_secrets, suggest_name
from must.stages import IMAGES, PODS


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


NAME = r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
LABEL_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL = rf"((?=.{{1,253}}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{LABEL_PART}"
OF_THE_SYSTEM = "tmp|dev|proc|sys|etc|usr|s?bin|lib(32|64)?|root|run|var/run|opt/must|kfp-launcher"
VARIABLE = re.compile(r"(?!MUST_|PET_)[A-Za-z_]\w*", re.ASCII)
SECRET = re.compile(r"(?i).*(secret|password|token|_key|connection_string)")  # the end of a variable's name
FORMS = (  # keys of cluster.yaml; the form of their value, or of NAME=VALUE; what is said of another one
    ("tag", r"\w[\w.-]{0,127}", "is no image tag"),
    (
        "registry",
        r"([a-z0-9._-]+(:\d+)?(/[a-z0-9._-]+)*/?)?",
        "is no registry, such as ghcr.io/team/must, in small letters and without https://",
    ),
    ("digests.*", r".*=sha256:[0-9a-f]{64}", "expected sha256: and 64 hex digits"),
    ("service_account credentials.secret volume.claim training.runtime pull_secrets", NAME, "is no Kubernetes name"),
    ("namespace", r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "is no Kubernetes name"),  # a DNS label
    ("gpu.accelerator", LABEL, "is no resource's name, as nvidia.com/gpu is"),
    (
        "labels.* cpu.node_selector.* gpu.node_selector.*",
        rf"{LABEL}=({LABEL_PART})?",
        "Kubernetes allows no such label: letters, digits, '-', '_' and '.', at most 63",
    ),
    ("credentials.secret volume.claim", r"[^.]*", "Kubeflow makes a volume's name of it, which cannot have dots"),
    ("resources.*.cpu resources.*.cpu_limit", r"\d+(\.\d+)?|\d+m", "expected 4, 0.5 or 500m"),
    (
        "shm resources.*.memory resources.*.memory_limit",
        r"\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?",
        "expected an amount of memory, such as 16Gi",
    ),
    ("training.processes", r"auto|0*[1-9]\d*", "a number of processes a node, or auto for one a GPU"),
    (
        "volume.mount",
        rf"(?!/(opt|var)?/*$)(?!/({OF_THE_SYSTEM})(/|$))/(?!.*:)(?!(.*/)?\.\.(/|$)).*",
        "expected a folder such as /data, and none of the system or the image, such as /tmp, /dev/shm or /opt/must",
    ),
)
SHORT = 8  # characters of a value that is no secret, such as a switch
MAX_PODS = 500  # Argo keeps the state of all pods of a run in one object, which etcd limits to about a megabyte
LEAST = {
    "gpu.count": 0, "training.nodes": 1, "shard.pods": 1, "label.pods": 1, "retries.count": 0,
    "retries.backoff": 0, "retries.factor": 1,
}  # fmt: skip
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def load_cluster(path: Path) -> ClusterConfig:
    """Raises ValueError: an unknown key (with the nearest known one), a wrong value, a contradiction."""
    cluster: ClusterConfig = convert_fields(read_mapping(path, f"--cluster {path}"), ClusterConfig, "")
    for key, known in (("resources", list(PODS)), ("timeouts", list(PODS)), ("digests", list(IMAGES))):
        for name in getattr(cluster, key):
            require(name in known, f"{key}.{name}: unknown; {suggest_name(name, known)}")
    defaults = dict(list_values("", ClusterConfig()))
    for key, text in list_values("", cluster):
        for keys, form, rule in FORMS:
            if (text or defaults.get(key)) and any(fnmatch(key, one) for one in keys.split()):
                shown = text.partition("=")[2] if "*" in keys and "=" in text else text
                require(re.fullmatch(form, text, re.ASCII) is not None, f"{key} '{shown}': {rule}")
    for ok, message in list_rules(cluster):
        require(ok, message)
    return cluster


def list_values(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """(key, text) of each text in cluster.yaml; of a mapping of texts NAME=TEXT."""
    if isinstance(value, list):
        for item in value:
            yield from list_values(key, item)
    elif isinstance(value, str):
        yield key, value
    elif isinstance(value, dict) or hasattr(value, "__dataclass_fields__"):
        for name, item in (value if isinstance(value, dict) else vars(value)).items():
            text = f"{name}={item}" if isinstance(value, dict) and isinstance(item, str) else item
            yield from list_values(f"{key}.{name}" if key else name, text)


def list_rules(cluster: ClusterConfig) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is said if not): ranges, and values that contradict one another."""
    credentials, volume, gpu, retries = cluster.credentials, cluster.volume, cluster.gpu, cluster.retries
    training, key_file = cluster.training, credentials.kind == "secret"
    for key, least in LEAST.items():
        yield attrgetter(key)(cluster) >= least, f"{key} {attrgetter(key)(cluster)}: must be at least {least}"
    for key in ("shard.pods", "label.pods"):
        yield attrgetter(key)(cluster) <= MAX_PODS, f"{key}: at most {MAX_PODS}"
    yield cluster.tag != "latest", "tag 'latest': may name another image during a run; give a version"
    yield (
        not key_file or bool(credentials.secret),
        "credentials.kind secret needs credentials.secret: the name of the Secret that holds the key file",
    )
    yield (
        key_file or not credentials.secret,
        f"credentials.secret contradicts credentials.kind {credentials.kind}: leave it out, or set kind: secret",
    )
    yield (
        credentials.kind != "workload-identity" or bool(cluster.service_account),
        "credentials.kind workload-identity needs service_account: the one that is bound to a cloud identity",
    )
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
    for key in ("node_selector", "tolerations"):
        rule = "set the number of GPUs a node, or leave the pool out"
        yield gpu.count > 0 or not getattr(gpu, key), f"gpu.{key} contradicts gpu.count 0: {rule}"
    able = ", ".join(name for name, row in PODS.items() if row.gpu)
    for stage in gpu.stages:
        yield stage in PODS, f"gpu.stages '{stage}': unknown; {suggest_name(stage, list(PODS))}"
        yield PODS[stage].gpu, f"gpu.stages '{stage}': does not use a GPU; these do: {able}"
    for pool in ("cpu", "gpu"):
        for number, toleration in enumerate(getattr(cluster, pool).tolerations):
            where, exists = f"{pool}.tolerations[{number}]", toleration.operator == "Exists"
            yield not (exists and toleration.value), f"{where}: operator Exists contradicts a value"
            yield exists or bool(toleration.key), f"{where}: without a key the operator must be Exists"
    for stage, it in cluster.resources.items():
        for key, text in vars(it).items():
            yield not text or parse_quantity(text) > 0, f"resources.{stage}.{key} {text}: must be above 0"
        for key in ("cpu", "memory"):
            where, low, high = f"resources.{stage}.{key}", getattr(it, key), getattr(it, f"{key}_limit")
            yield (
                not (low and high) or parse_quantity(low) <= parse_quantity(high),
                f"{where} {low} contradicts {where}_limit {high}: a limit is never below the request",
            )
    shm = parse_quantity(cluster.shm) if cluster.shm else 0
    for stage, it in cluster.resources.items():
        yield (
            not (it.memory_limit and PODS[stage].loaders) or shm < parse_quantity(it.memory_limit),
            f"shm {cluster.shm} contradicts resources.{stage}.memory_limit {it.memory_limit}: shared memory counts "
            "against the limit, so it must be smaller",
        )
    for stage, seconds in cluster.timeouts.items():
        yield seconds > 0, f"timeouts.{stage}: seconds above 0; leave it out for no limit"
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


# GKE's gke-spot and gke-preemptible, EKS' capacityType: SPOT, Karpenter's capacity-type, AKS' scalesetpriority.
SPOT = re.compile(r"(?i)\b(spot|preemptible|preemptable)\b")
FALSE_VALUES = ("false", "no", "0")


def is_spot(pool: NodePool) -> bool:
    """Whether the node selector or the tolerations name spot nodes."""
    pairs = list(pool.node_selector.items()) + [(each.key, each.value) for each in pool.tolerations]
    return any(SPOT.search(f"{key} {value}") and value.lower() not in FALSE_VALUES for key, value in pairs)


def warn_of_spot(cluster: ClusterConfig) -> str:
    """A warning if training runs in a stage's own pod on spot nodes; else ""."""
    pool = cluster.gpu if cluster.uses_gpu("train") else cluster.cpu
    if cluster.trains_in_trainjob or cluster.retries.policy in ("Always", "OnFailure") or not is_spot(pool):
        return ""
    return (
        "training runs in the stage's own pod on spot nodes: with Kubeflow's own settings the run ends when its "
        "node is shut down or the pod is evicted. Set retries.policy: Always (Pipelines 2.18) or training.as: trainjob "
        "(docs/kubeflow.md, Pods that vanish)"
    )
