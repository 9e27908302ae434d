"""Refuses contradictions in cluster.yaml, and values that Kubernetes would refuse later."""

import re
from collections.abc import Iterable
from pathlib import Path

from must.base.parameters import convert_fields, read_mapping, require, settings_of, with_name
from must.base.text import did_you_mean
from must.config import PredictConfig
from must_components.images import IMAGES
from must_pipeline.cluster.config import Cluster, Prediction, Resources
from must_pipeline.stages import STAGES

SET_BY_PIPELINE = ("model", "images", "output", "shards", "index_sha256", "part")


def predict_config(predict: Prediction) -> PredictConfig:
    """The stage's parameters, with "-" for paths that are not known yet. Raises ValueError, naming the key."""
    settings = settings_of(PredictConfig, predict.settings, "predict.settings", SET_BY_PIPELINE)
    return with_name("predict.settings", PredictConfig, shards="-", output="-", **settings)


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variables(names: Iterable[str]) -> None:
    for name in names:
        require(VARIABLE.fullmatch(name) is not None, f"env '{name}': is no name of an environment variable")
        require(not name.startswith(("MUST_", "PET_")), f"env '{name}': names that begin so are set by the pipeline")


NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
SHORT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a namespace: a DNS label
LABEL_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL = re.compile(rf"((?=.{{1,253}}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{LABEL_PART}")
LABEL_VALUE = re.compile(rf"({LABEL_PART})?")
REGISTRY = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*/?", re.ASCII)
CPU = re.compile(r"\d+(\.\d+)?|\d+m")
BYTES = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
NOT_PERSISTENT = "must be a bucket's URI or lie below volume.mount; a pod's own disk does not stay"
MAX_PODS = 500  # Argo keeps the state of all pods of a run in one object, which etcd limits to about a megabyte
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def check(cluster: Cluster) -> None:
    """Raises ValueError, naming the keys."""
    for key, known in (("resources", list(STAGES)), ("timeouts", list(STAGES)), ("digests", list(IMAGES))):
        for name in getattr(cluster, key):
            require(name in known, f"{key}.{name}: unknown; {did_you_mean(name, known)}")
    check_images(cluster)
    check_access(cluster)
    check_pools(cluster)
    check_resources(cluster)
    check_server(cluster)
    check_training(cluster)
    check_parts(cluster)


def check_parts(cluster: Cluster) -> None:
    predict = cluster.predict
    require(1 <= cluster.shard.pods <= MAX_PODS, f"shard.pods must be from 1 to {MAX_PODS}")
    require(0 <= predict.pods <= MAX_PODS, f"predict.pods must be from 0, for no such stage, to {MAX_PODS}")
    require(bool(predict.pods) or not predict.uri, "predict.uri contradicts predict.pods 0: set the number of pods")
    require(not predict.pods or bool(predict.uri), "predict.pods needs predict.uri: where the predictions go")
    require(is_persistent(predict.uri, cluster), f"predict.uri '{predict.uri}': {NOT_PERSISTENT}")
    predict_config(predict)


def check_images(cluster: Cluster) -> None:
    fixed = cluster.tag not in ("", "latest")
    require(fixed, f"tag '{cluster.tag}': may name another image during a run; give a version")
    require(re.fullmatch(r"\w[\w.-]{0,127}", cluster.tag) is not None, f"tag '{cluster.tag}': is no image tag")
    require("://" not in cluster.registry, f"registry {cluster.registry}: without https://, such as ghcr.io/team/must")
    ok = not cluster.registry or REGISTRY.fullmatch(cluster.registry) is not None
    require(ok, f"registry '{cluster.registry}': is no registry, such as ghcr.io/team/must")
    for name, digest in cluster.digests.items():
        ok = re.fullmatch(r"sha256:[0-9a-f]{64}", digest) is not None
        require(ok, f"digests.{name} '{digest}': expected sha256: and 64 hex digits")


def check_access(cluster: Cluster) -> None:
    credentials = cluster.credentials
    names = [("service_account", cluster.service_account), ("credentials.secret", credentials.secret)]
    names += [("volume.claim", cluster.volume.claim), ("training.runtime", cluster.training.runtime)]
    for key, value in names:
        require(not value or NAME.fullmatch(value) is not None, f"{key} '{value}': is no Kubernetes name")
    namespace = cluster.namespace
    ok = not namespace or SHORT.fullmatch(namespace) is not None
    require(ok, f"namespace '{namespace}': is no Kubernetes name")
    check_labels("labels", cluster.labels)
    for pool in ("cpu", "gpu"):
        check_labels(f"{pool}.node_selector", getattr(cluster, pool).node_selector)
    kind = cluster.gpu.accelerator
    require(LABEL.fullmatch(kind) is not None, f"gpu.accelerator '{kind}': is no resource's name, as nvidia.com/gpu is")
    for name in cluster.pull_secrets:
        require(NAME.fullmatch(name) is not None, f"pull_secrets '{name}': is no Kubernetes name")
    require(
        credentials.kind != "secret" or bool(credentials.secret),
        "credentials.kind secret needs credentials.secret: the name of the Secret that holds the key file",
    )
    require(
        credentials.kind == "secret" or not credentials.secret,
        f"credentials.secret contradicts credentials.kind {credentials.kind}: leave it out, or set kind: secret",
    )
    require(
        credentials.kind != "workload-identity" or bool(cluster.service_account),
        "credentials.kind workload-identity needs service_account: the one that is bound to a cloud identity",
    )
    check_variables((credentials.variable, *cluster.env))
    volume = cluster.volume
    for key, value in (("credentials.secret", credentials.secret), ("volume.claim", volume.claim)):
        require("." not in value, f"{key} '{value}': Kubeflow makes a volume's name of it, which cannot have dots")
    require(bool(volume.claim) == bool(volume.mount), "volume: claim and mount go together")
    require(
        not volume.mount
        or (
            (volume.mount.startswith("/") and volume.mount.rstrip("/") not in ("", "/dev/shm", "/tmp"))
            and not {":", ".."} & {*volume.mount, *volume.mount.split("/")}
        ),
        f"volume.mount '{volume.mount}': expected a folder such as /data, not / or /tmp or /dev/shm",
    )
    board = cluster.tensorboard
    require(is_persistent(board, cluster), f"tensorboard '{board}': {NOT_PERSISTENT}")


def check_labels(key: str, labels: dict[str, str]) -> None:
    """Refuses labels that Kubernetes would refuse when it creates the pod."""
    for name, value in labels.items():
        ok = LABEL.fullmatch(name) is not None and LABEL_VALUE.fullmatch(value) is not None
        rule = "Kubernetes allows no such label: letters, digits, '-', '_' and '.', at most 63"
        require(ok, f"{key}.{name} '{value}': {rule}")


def is_persistent(uri: str, cluster: Cluster) -> bool:
    """Whether files at `uri` outlive the pod that wrote them; True for ""."""
    mount = cluster.volume.mount
    inside = mount and f"{uri}/".startswith(f"{mount.rstrip('/')}/")
    return not uri or uri.partition("://")[0] in ("gs", "s3", "az", "abfs", "abfss") or bool(inside)


def check_pools(cluster: Cluster) -> None:
    gpu = cluster.gpu
    require(gpu.count >= 0, "gpu.count must not be negative")
    for key in ("node_selector", "tolerations"):
        require(
            gpu.count > 0 or not getattr(gpu, key),
            f"gpu.{key} contradicts gpu.count 0: set the number of GPUs a node, or leave the pool out",
        )
    for stage in gpu.stages:
        require(stage in STAGES, f"gpu.stages '{stage}': unknown; {did_you_mean(stage, list(STAGES))}")
        able = ", ".join(name for name, row in STAGES.items() if row.gpu)
        require(STAGES[stage].gpu, f"gpu.stages '{stage}': does not use a GPU; these do: {able}")
    for pool in ("cpu", "gpu"):
        for number, toleration in enumerate(getattr(cluster, pool).tolerations):
            where, exists = f"{pool}.tolerations[{number}]", toleration.operator == "Exists"
            require(not (exists and toleration.value), f"{where}: operator Exists contradicts a value")
            require(exists or bool(toleration.key), f"{where}: without a key the operator must be Exists")


def check_resources(cluster: Cluster) -> None:
    shm = bytes_of(cluster.shm, "shm") if cluster.shm else 0
    for stage, resources in cluster.resources.items():
        where = f"resources.{stage}"
        for key in ("cpu", "cpu_limit"):
            value = getattr(resources, key)
            require(not value or CPU.fullmatch(value) is not None, f"{where}.{key} '{value}': expected 4, 0.5 or 500m")
        check_limits(resources, where)
        if resources.memory_limit and STAGES[stage].loaders:
            limit = bytes_of(resources.memory_limit, where)
            require(
                shm < limit,
                f"shm {cluster.shm} contradicts {where}.memory_limit {resources.memory_limit}: shared memory counts "
                "against the limit, so it must be smaller",
            )
    for stage, seconds in cluster.timeouts.items():
        require(seconds > 0, f"timeouts.{stage}: seconds above 0; leave it out for no limit")
    retries = cluster.retries
    require(retries.count >= 0 and retries.backoff >= 0, "retries: count and backoff must not be negative")
    require(retries.factor >= 1, f"retries.factor {retries.factor}: must be 1 or more")
    longest = max([retries.backoff, *cluster.timeouts.values()])
    require(
        retries.count == 0 or retries.window > longest,
        f"retries.window {retries.window} contradicts {longest} s in timeouts or retries.backoff: it is counted from "
        "the first try's start, so a stage that fails later would not be tried again",
    )


def check_server(cluster: Cluster) -> None:
    server = cluster.server
    require(server.replicas >= 1, f"server.replicas {server.replicas}: must be at least 1")
    require(CPU.fullmatch(server.cpu) is not None, f"server.cpu '{server.cpu}': expected 4, 0.5 or 500m")
    check_limits(Resources(server.cpu, server.memory, memory_limit=server.memory_limit), "server")


def check_limits(resources: Resources, where: str) -> None:
    pairs = [("cpu", "cpu_limit", cores_of), ("memory", "memory_limit", lambda text: bytes_of(text, where))]
    for request, limit, parse in pairs:
        requested, allowed = getattr(resources, request), getattr(resources, limit)
        if requested:
            parse(requested)
        require(
            not (requested and allowed) or parse(requested) <= parse(allowed),
            f"{where}.{request} {requested} contradicts {where}.{limit} {allowed}: a limit is never below the request",
        )


def check_training(cluster: Cluster) -> None:
    training, gpus = cluster.training, cluster.gpu.count
    require(training.nodes >= 1, "training.nodes must be at least 1")
    require(
        training.nodes == 1 or training.as_ != "pod",
        f"training.as pod contradicts training.nodes {training.nodes}: several nodes are a TrainJob",
    )
    processes = training.processes
    require(
        processes == "auto" or (processes.isdigit() and int(processes) >= 1),
        f"training.processes '{processes}': a number of processes a node, or auto for one a GPU",
    )
    require(
        processes == "auto" or not gpus or int(processes) <= gpus,
        f"training.processes {processes} contradicts gpu.count {gpus}: a process needs a GPU of its own",
    )
    require(
        not cluster.trains_in_trainjob or "train" in cluster.gpu.stages or not gpus,
        "gpu.stages without train contradicts training.nodes or training.as: a TrainJob's nodes are for training",
    )
    require(not cluster.trains_in_trainjob or bool(training.runtime), "a TrainJob needs training.runtime")


def cores_of(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def bytes_of(text: str, where: str) -> float:
    match = BYTES.fullmatch(text)
    require(match is not None, f"{where} '{text}': expected an amount of memory, such as 16Gi")
    assert match
    return float(match[1]) * UNITS[match[2] or ""]


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: an unknown key (with the nearest known one), a wrong value, a contradiction."""
    cluster: Cluster = convert_fields(read_mapping(path, f"--cluster {path}"), Cluster, "")
    check(cluster)
    return cluster
