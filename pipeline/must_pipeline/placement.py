"""Applies cluster.yaml to a task: image, pool, resources, volumes, retries, time limit. For a TrainJob's nodes, which
another controller creates, its settings are a parameter of the task: a plain dictionary."""

import math
from typing import Any

from kfp import dsl, kubernetes

from must.base.program import ERROR_FILE
from must.pods.supervise import Policy
from must.table import COMPONENTS, GPU_IMAGE, PODS
from must_pipeline.cluster import ClusterConfig, Resources, Toleration, parse_quantity

QUEUE = "kueue.x-k8s.io/queue-name"  # label: pods and TrainJobs wait until Kueue admits them
KEY_FOLDER = "/var/secrets/google"
EXTRA_SECONDS = 900  # by which Kubernetes' limit exceeds the stage's: to pull its image and to end
TERMINATION_LOG = "/dev/termination-log"  # its content becomes a part of the pod's status, which the launcher reads
REQUESTS = Resources(cpu="500m", memory="1Gi")  # requests of a stage that cluster.yaml does not mention


def configure_task(task: dsl.PipelineTask, name: str, cluster: ClusterConfig) -> dsl.PipelineTask:
    """`name` is that of the component's row in must/table.py."""
    row = COMPONENTS[name]
    stage = row.of or name  # in cluster.yaml
    task.set_display_name(row.title or name).set_caching_options(False)
    launcher = name == "train-on-nodes"
    gpu = row.gpu and cluster.uses_gpu(stage)
    task.set_container_image(cluster.image(GPU_IMAGE if gpu else row.image))
    if cluster.pull_policy:
        kubernetes.set_image_pull_policy(task, cluster.pull_policy)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, cluster.pull_secrets)
    for name, value in cluster.labels.items():
        kubernetes.add_pod_label(task, name, value)
    pool = cluster.gpu if gpu else cluster.cpu
    for name, value in pool.node_selector.items():
        kubernetes.add_node_selector(task, name, value)
    for toleration in pool.tolerations:
        kubernetes.add_toleration(task, **list_toleration_fields(toleration))
    if gpu:
        task.set_accelerator_type(cluster.gpu.accelerator).set_accelerator_limit(cluster.gpu.count)
    # A launcher only waits and passes the model on; its nodes get cluster.yaml's resources of training.
    if launcher:
        set_resources(task, Resources(), row.memory)
    else:
        set_resources(task, cluster.resources.get(stage, Resources()), estimate_limit(stage, cluster))
    kubernetes.set_security_context(task, run_as_non_root=True)  # Pipelines 2.17 sets the rest of `restricted`
    if cluster.shm and row.loaders:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=cluster.shm)
    set_access(task, cluster)
    set_persistence(task, stage, cluster, launcher)
    return task


def estimate_limit(stage: str, cluster: ClusterConfig) -> int:
    """The memory limit in GiB of a stage for which cluster.yaml sets none: per GPU process, plus /dev/shm, which counts
    against the limit."""
    row = PODS[stage]
    shm = parse_quantity(cluster.shm) if cluster.shm and row.loaders else 0.0
    return row.memory * max(1, cluster.gpu.count if cluster.uses_gpu(stage) else 1) + math.ceil(shm / 2**30)


def set_resources(task: dsl.PipelineTask, resources: Resources, default_limit: int) -> None:
    """Every pod gets requests: in a namespace with a quota Kubernetes refuses a pod without them. `default_limit`: GiB
    of memory for a pod for which cluster.yaml sets none."""
    cpu = resources.cpu or ("" if resources.cpu_limit else REQUESTS.cpu)  # a limit is also the request
    memory = resources.memory or ("" if resources.memory_limit else REQUESTS.memory)
    limit = resources.memory_limit or ("" if resources.memory else f"{default_limit}Gi")
    for value, setter in (
        (cpu, task.set_cpu_request),
        (memory, task.set_memory_request),
        (resources.cpu_limit, task.set_cpu_limit),
        (limit, task.set_memory_limit),
    ):
        if value:
            setter(value)


def set_access(task: dsl.PipelineTask, cluster: ClusterConfig) -> None:
    credentials = cluster.credentials
    if credentials.kind == "secret":
        kubernetes.use_secret_as_volume(task, credentials.secret, KEY_FOLDER)
        task.set_env_variable(credentials.variable, f"{KEY_FOLDER}/{credentials.key}")
    for variable, value in cluster.env.items():
        task.set_env_variable(variable, value)
    if cluster.volume.claim:
        kubernetes.mount_pvc(task, cluster.volume.claim, cluster.volume.mount)


def set_persistence(task: dsl.PipelineTask, stage: str, cluster: ClusterConfig, launcher: bool) -> None:
    retries = cluster.retries
    if retries.count and PODS[stage].retried:
        # The pod itself retries a crash, but not wrong input; Kubeflow retries a pod that was lost.
        task.set_env_variable("MUST_RETRIES", f"{retries.count},{retries.backoff},{retries.factor}")
        task.set_retry(retries.count, f"{retries.backoff}s", retries.factor, f"{retries.window}s")
    seconds = cluster.timeouts.get(stage)
    if seconds and launcher:
        # The launcher ends its TrainJob at the limit, needs some time for it, and may then start another one.
        policy = Policy(retries.count, retries.backoff, retries.factor)
        pauses = sum(policy.pause(number + 1) for number in range(retries.count))
        seconds = (retries.count + 1) * (seconds + 300) + int(pauses)
    elif seconds:
        # The stage ends itself at the limit with a message; Kubernetes' limit has none and includes the image pull.
        task.set_env_variable("MUST_TIME_LIMIT", str(seconds))
        seconds += EXTRA_SECONDS
    if seconds and not (launcher and QUEUE in cluster.labels):  # its TrainJob may wait for days before its time counts
        kubernetes.set_timeout(task, seconds)


def list_toleration_fields(toleration: Toleration) -> dict[str, Any]:
    return {name: value for name, value in vars(toleration).items() if value}


def encode_nodes(cluster: ClusterConfig) -> dict[str, Any]:
    """The launcher's parameter `nodes`: of the pods `pod`, fields of their spec, as far as there are any; `env` and
    `mounts` of their container; `labels`; and what the TrainJob itself needs."""
    resources, pool = cluster.resources.get("train", Resources()), cluster.gpu if cluster.gpu.count else cluster.cpu
    volumes, mounts, environment = list[dict[str, Any]](), list[dict[str, Any]](), {"PYTHONUNBUFFERED": "1"}
    environment |= {ERROR_FILE: TERMINATION_LOG} | cluster.env

    def mount(name: str, path: str, source: dict[str, Any]) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path})

    if cluster.shm:
        mount("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm}})
    if key := cluster.credentials.secret:
        mount("key", KEY_FOLDER, {"secret": {"secretName": key}})
        environment[cluster.credentials.variable] = f"{KEY_FOLDER}/{cluster.credentials.key}"
    if claim := cluster.volume.claim:
        mount("data", cluster.volume.mount, {"persistentVolumeClaim": {"claimName": claim}})
    pod = {
        "serviceAccountName": cluster.service_account,
        "imagePullSecrets": [{"name": secret} for secret in cluster.pull_secrets],
        "nodeSelector": pool.node_selector,
        "tolerations": [{"operator": "Equal", **list_toleration_fields(toleration)} for toleration in pool.tolerations],
        "volumes": volumes,
    }
    return {
        "pod": {name: value for name, value in pod.items() if value},
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "mounts": mounts,
        "labels": cluster.labels,
        "image": cluster.image(GPU_IMAGE),
        "nodes": cluster.training.nodes,
        "processes": cluster.training.processes,
        "runtime": cluster.training.runtime,
        "gpus": cluster.gpu.count,
        "accelerator": cluster.gpu.accelerator,
        # A node's request is its limit.
        "cpu": resources.cpu_limit or resources.cpu,
        "memory": resources.memory_limit or resources.memory,
        "deadline": cluster.timeouts.get("train", cluster.retries.window),
    }
