"""Refuses contradictions in cluster.yaml, and values that Kubernetes would refuse later."""

import re
from collections.abc import Iterator
from pathlib import Path

from must.base.parameters import convert_fields, read_mapping, require, require_settings, with_name
from must.base.text import did_you_mean
from must.config import PredictConfig
from must_components.images import IMAGES
from must_pipeline.cluster.config import Cluster, Prediction, Resources
from must_pipeline.stages import STAGES

SET_BY_PIPELINE = ("model", "images", "output", "shards", "index_sha256", "part")
LABEL_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_RULE = "Kubernetes allows no such label: letters, digits, '-', '_' and '.', at most 63"
NAME_RULE = "is no Kubernetes name"
NAME = r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
LABEL = rf"((?=.{{1,253}}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{LABEL_PART}"
FORMS = {  # kind of a value -> its form, and what is said of another one
    "tag": (r"\w[\w.-]{0,127}", "is no image tag"),
    "registry": (r"([\w.-]+(:\d+)?(/[\w.-]+)*/?)?", "is no registry, such as ghcr.io/team/must, without https://"),
    "digest": (r"sha256:[0-9a-f]{64}", "expected sha256: and 64 hex digits"),
    "name": (NAME, NAME_RULE),
    "namespace": (r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", NAME_RULE),  # a DNS label
    "resource": (LABEL, "is no resource's name, as nvidia.com/gpu is"),
    "label": (rf"{LABEL}=({LABEL_PART})?", LABEL_RULE),
    "variable": (r"[A-Za-z_][A-Za-z0-9_]*", "is no name of an environment variable"),
    "our variable": (r"(?!MUST_|PET_).*", "names that begin so are set by the pipeline"),
    "volume": (r"[^.]*", "Kubeflow makes a volume's name of it, which cannot have dots"),
    "cpu": (r"\d+(\.\d+)?|\d+m", "expected 4, 0.5 or 500m"),
    "memory": (r"\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?", "expected an amount of memory, such as 16Gi"),
    "processes": (r"auto|0*[1-9]\d*", "a number of processes a node, or auto for one a GPU"),
    "mount": (
        r"(?!/(dev/shm|tmp)?/*$)/(?!.*:)(?!(.*/)?\.\.(/|$)).*",
        "expected a folder such as /data, not / or /tmp or /dev/shm",
    ),
}
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
MAX_PODS = 500  # Argo keeps the state of all pods of a run in one object, which etcd limits to about a megabyte


def predict_config(predict: Prediction) -> PredictConfig:
    """The stage's parameters, with "-" for paths that are not known yet. Raises ValueError, naming the key."""
    settings = require_settings(PredictConfig, predict.settings, "predict.settings", SET_BY_PIPELINE)
    return with_name("predict.settings", PredictConfig, shards="-", output="-", **settings)


def check(cluster: Cluster) -> None:
    """Raises ValueError, naming the keys."""
    for key, known in (("resources", list(STAGES)), ("timeouts", list(STAGES)), ("digests", list(IMAGES))):
        for name in getattr(cluster, key):
            require(name in known, f"{key}.{name}: unknown; {did_you_mean(name, known)}")
    for kind, key, value in list_values(cluster):
        pattern, rule = FORMS[kind]
        shown = value.partition("=")[2] if kind == "label" else value
        require(re.fullmatch(pattern, value, re.ASCII) is not None, f"{key} '{shown}': {rule}")
    for ok, message in list_rules(cluster):
        require(ok, message)
    predict_config(cluster.predict)


def list_values(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """(kind of FORMS, key, value) of the values that have a form; an empty one is no value."""
    secret, claim = cluster.credentials.secret, cluster.volume.claim
    labels = {"labels": cluster.labels}
    labels |= {f"{pool}.node_selector": getattr(cluster, pool).node_selector for pool in ("cpu", "gpu")}
    variables = (cluster.credentials.variable, *cluster.env)
    quantities = list_quantities(cluster)
    named = [
        ("registry", "registry", cluster.registry), ("name", "service_account", cluster.service_account),
        ("name", "credentials.secret", secret), ("volume", "credentials.secret", secret),
        ("name", "volume.claim", claim), ("volume", "volume.claim", claim),
        ("name", "training.runtime", cluster.training.runtime),
        ("namespace", "namespace", cluster.namespace), ("mount", "volume.mount", cluster.volume.mount),
        ("memory", "shm", cluster.shm), *(("name", "pull_secrets", name) for name in cluster.pull_secrets),
        *(("cpu", f"{where}.cpu", it.cpu) for where, it in quantities),
        *(("cpu", f"{where}.cpu_limit", it.cpu_limit) for where, it in quantities),
        *(("memory", where, text) for where, it in quantities for text in (it.memory, it.memory_limit)),
    ]  # fmt: skip
    yield from [item for item in named if item[2]]
    yield "tag", "tag", cluster.tag
    yield "resource", "gpu.accelerator", cluster.gpu.accelerator
    yield "processes", "training.processes", cluster.training.processes
    yield from [("digest", f"digests.{name}", digest) for name, digest in cluster.digests.items()]
    yield from [("label", f"{key}.{it}", f"{it}={value}") for key, them in labels.items() for it, value in them.items()]
    yield from [(kind, "env", name) for kind in ("variable", "our variable") for name in variables]


def list_rules(cluster: Cluster) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is said if not): ranges, and values that contradict one another."""
    credentials, volume, gpu, retries = cluster.credentials, cluster.volume, cluster.gpu, cluster.retries
    training, predict, key_file = cluster.training, cluster.predict, credentials.kind == "secret"
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
    for key, uri in (("tensorboard", cluster.tensorboard), ("predict.uri", predict.uri)):
        rule = "must be a bucket's URI or lie below volume.mount; a pod's own disk does not stay"
        yield is_persistent(uri, cluster), f"{key} '{uri}': {rule}"
    yield gpu.count >= 0, "gpu.count must not be negative"
    for key in ("node_selector", "tolerations"):
        rule = "set the number of GPUs a node, or leave the pool out"
        yield gpu.count > 0 or not getattr(gpu, key), f"gpu.{key} contradicts gpu.count 0: {rule}"
    able = ", ".join(name for name, row in STAGES.items() if row.gpu)
    for stage in gpu.stages:
        yield stage in STAGES, f"gpu.stages '{stage}': unknown; {did_you_mean(stage, list(STAGES))}"
        yield STAGES[stage].gpu, f"gpu.stages '{stage}': does not use a GPU; these do: {able}"
    for pool in ("cpu", "gpu"):
        for number, toleration in enumerate(getattr(cluster, pool).tolerations):
            where, exists = f"{pool}.tolerations[{number}]", toleration.operator == "Exists"
            yield not (exists and toleration.value), f"{where}: operator Exists contradicts a value"
            yield exists or bool(toleration.key), f"{where}: without a key the operator must be Exists"
    yield cluster.server.replicas >= 1, f"server.replicas {cluster.server.replicas}: must be at least 1"
    for where, it in list_quantities(cluster):
        for request, limit, parse in (("cpu", "cpu_limit", parse_cores), ("memory", "memory_limit", parse_bytes)):
            low, high = getattr(it, request), getattr(it, limit)
            yield (
                not (low and high) or parse(low) <= parse(high),
                f"{where}.{request} {low} contradicts {where}.{limit} {high}: a limit is never below the request",
            )
    shm = parse_bytes(cluster.shm) if cluster.shm else 0
    for stage, it in cluster.resources.items():
        yield (
            not (it.memory_limit and STAGES[stage].loaders) or shm < parse_bytes(it.memory_limit),
            f"shm {cluster.shm} contradicts resources.{stage}.memory_limit {it.memory_limit}: shared memory counts "
            "against the limit, so it must be smaller",
        )
    for stage, seconds in cluster.timeouts.items():
        yield seconds > 0, f"timeouts.{stage}: seconds above 0; leave it out for no limit"
    yield retries.count >= 0 and retries.backoff >= 0, "retries: count and backoff must not be negative"
    yield retries.factor >= 1, f"retries.factor {retries.factor}: must be 1 or more"
    longest = max([retries.backoff, *cluster.timeouts.values()])
    yield (
        retries.count == 0 or retries.window > longest,
        f"retries.window {retries.window} contradicts {longest} s in timeouts or retries.backoff: it is counted from "
        "the first try's start, so a stage that fails later would not be tried again",
    )
    yield training.nodes >= 1, "training.nodes must be at least 1"
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
    yield not cluster.trains_in_trainjob or bool(training.runtime), "a TrainJob needs training.runtime"
    yield 1 <= cluster.shard.pods <= MAX_PODS, f"shard.pods must be from 1 to {MAX_PODS}"
    yield 0 <= predict.pods <= MAX_PODS, f"predict.pods must be from 0, for no such stage, to {MAX_PODS}"
    yield bool(predict.pods) or not predict.uri, "predict.uri contradicts predict.pods 0: set the number of pods"
    yield not predict.pods or bool(predict.uri), "predict.pods needs predict.uri: where the predictions go"


def list_quantities(cluster: Cluster) -> list[tuple[str, Resources]]:
    server = Resources(cluster.server.cpu, cluster.server.memory, memory_limit=cluster.server.memory_limit)
    return [*((f"resources.{stage}", it) for stage, it in cluster.resources.items()), ("server", server)]


def is_persistent(uri: str, cluster: Cluster) -> bool:
    """Whether files at `uri` outlive the pod that wrote them; True for ""."""
    mount = cluster.volume.mount
    inside = mount and f"{uri}/".startswith(f"{mount.rstrip('/')}/")
    return not uri or uri.partition("://")[0] in ("gs", "s3", "az", "abfs", "abfss") or bool(inside)


def parse_cores(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def parse_bytes(text: str) -> float:
    """Of an amount in the form `memory`."""
    number = re.match(r"[\d.]+", text)
    assert number
    return float(number[0]) * UNITS[text[number.end() :]]


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: an unknown key (with the nearest known one), a wrong value, a contradiction."""
    cluster: Cluster = convert_fields(read_mapping(path, f"--cluster {path}"), Cluster, "")
    check(cluster)
    return cluster
