"""Refuses contradictions in cluster.yaml, and values that Kubernetes would refuse later."""

import re
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

from must.base.errors import UserError
from must.base.parameters import convert_fields, read_mapping, require, require_settings, with_name
from must.base.text import did_you_mean
from must.config import PredictConfig
from must_components.serving.service import is_reachable
from must_pipeline.cluster.config import Cluster, Pool, Resources
from must_pipeline.stages import IMAGES, STAGES

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
FORMS_OF_KEYS = {  # a key of FORMS -> keys of cluster.yaml
    "registry": "registry",
    "tag": "tag",
    "name": "service_account credentials.secret volume.claim training.runtime",
    "namespace": "namespace",
    "volume": "credentials.secret volume.claim",
    "variable": "credentials.variable",
    "our variable": "credentials.variable",
    "mount": "volume.mount",
    "memory": "shm",
    "resource": "gpu.accelerator",
    "processes": "training.processes",
}
MAX_PODS = 500  # Argo keeps the state of all pods of a run in one object, which etcd limits to about a megabyte
LEAST = {
    "gpu.count": 0, "training.nodes": 1, "server.replicas": 1, "shard.pods": 1, "predict.pods": 0, "retries.count": 0,
    "retries.backoff": 0, "retries.factor": 1,
}  # fmt: skip
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: an unknown key (with the nearest known one), a wrong value, a contradiction."""
    cluster: Cluster = convert_fields(read_mapping(path, f"--cluster {path}"), Cluster, "")
    for key, known in (("resources", list(STAGES)), ("timeouts", list(STAGES)), ("digests", list(IMAGES))):
        for name in getattr(cluster, key):
            require(name in known, f"{key}.{name}: unknown; {did_you_mean(name, known)}")
    for form, key, value in list_values(cluster):
        pattern, rule = FORMS[form]
        shown = value.partition("=")[2] if form == "label" else value
        require(re.fullmatch(pattern, value, re.ASCII) is not None, f"{key} '{shown}': {rule}")
    for ok, message in list_rules(cluster):
        require(ok, message)
    settings = require_settings(PredictConfig, cluster.predict.settings, "predict.settings", SET_BY_PIPELINE)
    with_name("predict.settings", PredictConfig, shards="-", output="-", **settings)  # paths that are not known yet
    return cluster


def list_values(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """(name in FORMS, key, value) of the values that have a form; "" is none where it is the default."""
    for form, keys in FORMS_OF_KEYS.items():
        for key in keys.split():
            value, default = attrgetter(key)(cluster), attrgetter(key)(Cluster())
            if value or default:
                yield form, key, value
    for where, it in list_quantities(cluster):
        yield from [("cpu", f"{where}.cpu", it.cpu)] if it.cpu else []
        yield from [("cpu", f"{where}.cpu_limit", it.cpu_limit)] if it.cpu_limit else []
        yield from [("memory", where, text) for text in (it.memory, it.memory_limit) if text]
    yield from [("name", "pull_secrets", name) for name in cluster.pull_secrets]
    yield from [("digest", f"digests.{name}", digest) for name, digest in cluster.digests.items()]
    yield from [(form, "env", name) for form in ("variable", "our variable") for name in cluster.env]
    pools = {"cpu.node_selector": cluster.cpu.node_selector, "gpu.node_selector": cluster.gpu.node_selector}
    for key, labels in {"labels": cluster.labels, **pools}.items():
        yield from [("label", f"{key}.{name}", f"{name}={value}") for name, value in labels.items()]


def list_rules(cluster: Cluster) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is said if not): ranges, and values that contradict one another."""
    credentials, volume, gpu, retries = cluster.credentials, cluster.volume, cluster.gpu, cluster.retries
    training, predict, key_file = cluster.training, cluster.predict, credentials.kind == "secret"
    for key, least in LEAST.items():
        yield attrgetter(key)(cluster) >= least, f"{key} {attrgetter(key)(cluster)}: must be at least {least}"
    yield max(cluster.shard.pods, predict.pods) <= MAX_PODS, f"shard.pods, predict.pods: at most {MAX_PODS}"
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
        with suppress(UserError):  # an unknown scheme
            if not uri or is_reachable(uri, volume.mount):
                continue
        yield False, f"{key} '{uri}': {rule}"
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
    for where, it in list_quantities(cluster):
        for key in ("cpu", "memory"):
            low, high = getattr(it, key), getattr(it, f"{key}_limit")
            yield (
                not (low and high) or parse_quantity(low) <= parse_quantity(high),
                f"{where}.{key} {low} contradicts {where}.{key}_limit {high}: a limit is never below the request",
            )
    shm = parse_quantity(cluster.shm) if cluster.shm else 0
    for stage, it in cluster.resources.items():
        yield (
            not (it.memory_limit and STAGES[stage].loaders) or shm < parse_quantity(it.memory_limit),
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
    yield bool(predict.pods) or not predict.uri, "predict.uri contradicts predict.pods 0: set the number of pods"
    yield not predict.pods or bool(predict.uri), "predict.pods needs predict.uri: where the predictions go"


def list_quantities(cluster: Cluster) -> list[tuple[str, Resources]]:
    server = Resources(cluster.server.cpu, cluster.server.memory, memory_limit=cluster.server.memory_limit)
    return [*((f"resources.{stage}", it) for stage, it in cluster.resources.items()), ("server", server)]


def parse_quantity(text: str) -> float:
    """Of cores, or bytes, in the forms `cpu` and `memory`."""
    number = re.match(r"[\d.]+", text)
    assert number
    return float(number[0]) * UNITS[text[number.end() :]]


# GKE's gke-spot and gke-preemptible, EKS' capacityType: SPOT, Karpenter's capacity-type, AKS' scalesetpriority.
SPOT = re.compile(r"(?i)\b(spot|preemptible|preemptable)\b")
FALSE_VALUES = ("false", "no", "0")


def is_spot(pool: Pool) -> bool:
    """Whether the node selector or the tolerations name spot nodes."""
    pairs = list(pool.node_selector.items()) + [(each.key, each.value) for each in pool.tolerations]
    return any(SPOT.search(f"{key} {value}") and value.lower() not in FALSE_VALUES for key, value in pairs)


def spot_warning(cluster: Cluster) -> str:
    """A warning if training runs in a stage's own pod on spot nodes; else ""."""
    pool = cluster.gpu if cluster.uses_gpu("train") else cluster.cpu
    if cluster.trains_in_trainjob or cluster.retries.policy in ("Always", "OnFailure") or not is_spot(pool):
        return ""
    return (
        "training runs in the stage's own pod on spot nodes: with Kubeflow's own settings the run ends when its "
        "node is shut down or the pod is evicted. Set retries.policy: Always (Pipelines 2.18) or training.as: trainjob "
        "(docs/kubeflow.md, Pods that vanish)"
    )
