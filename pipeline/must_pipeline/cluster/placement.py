"""Puts cluster.yaml's decisions on a task: image, pool, resources, volumes, retries, time limit."""

import math
from typing import Any

from kfp import dsl, kubernetes

from must_pipeline.cluster.config import Cluster, Resources, Retries, Toleration
from must_pipeline.cluster.rules import bytes_of
from must_pipeline.stages import GPU_IMAGE, LAUNCHER_IMAGE, STAGES

QUEUE = "kueue.x-k8s.io/queue-name"  # label: pods and TrainJobs wait until Kueue admits them
KEY_FOLDER = "/var/secrets/google"
BACKSTOP = 900  # seconds that Kubernetes gives a stage beyond its time limit: for its image, and to end
LEAST = Resources(cpu="500m", memory="1Gi")  # what a stage asks for that cluster.yaml says nothing of


def configure_task(task: dsl.PipelineTask, stage: str, cluster: Cluster, title: str = "") -> dsl.PipelineTask:
    """`stage` is a name of must_pipeline/stages.py, under which cluster.yaml has the task's resources and timeout;
    `title` is shown in place of its name."""
    row = STAGES[stage]
    task.set_display_name(title or stage).set_caching_options(row.cached)
    launcher = stage == "train" and cluster.trains_in_trainjob
    gpu = cluster.uses_gpu(stage) and not launcher
    task.set_container_image(cluster.image(LAUNCHER_IMAGE if launcher else GPU_IMAGE if gpu else row.image))
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
        kubernetes.add_toleration(task, **toleration_fields(toleration))
    if gpu:
        task.set_accelerator_type(cluster.gpu.accelerator).set_accelerator_limit(cluster.gpu.count)
    # A launcher waits, and hands the model on; its nodes get what cluster.yaml says of training.
    set_resources(
        task,
        Resources() if launcher else cluster.resources.get(stage, Resources()),
        STAGES["promote"].memory if launcher else limit_of(stage, cluster),
    )
    kubernetes.set_security_context(
        task, run_as_non_root=True
    )  # the rest of `restricted` Pipelines 2.17 sets by itself
    if cluster.shm and row.loaders and not launcher:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=cluster.shm)
    set_access(task, cluster)
    set_persistence(task, stage, cluster, launcher)
    return task


def limit_of(stage: str, cluster: Cluster) -> int:
    """GiB at most, where cluster.yaml says nothing of the stage's memory: /dev/shm counts against it, a GPU has its own
    process."""
    row = STAGES[stage]
    shm = bytes_of(cluster.shm, "shm") if cluster.shm and row.loaders else 0.0
    return row.memory * max(1, cluster.gpu.count if cluster.uses_gpu(stage) else 1) + math.ceil(shm / 2**30)


def set_resources(task: dsl.PipelineTask, wanted: Resources, most: int) -> None:
    """Every pod asks for something: where a quota counts cores or memory, Kubernetes refuses one that does not.

    Args:
        most: GiB of memory at which a pod ends that cluster.yaml says nothing of; else it would end its neighbours.
    """
    limit = wanted.memory_limit or ("" if wanted.memory else f"{most}Gi")
    for value, setter in (
        (wanted.cpu or ("" if wanted.cpu_limit else LEAST.cpu), task.set_cpu_request),  # a limit is a request, too
        (wanted.memory or ("" if wanted.memory_limit else LEAST.memory), task.set_memory_request),
        (wanted.cpu_limit, task.set_cpu_limit),
        (limit, task.set_memory_limit),
    ):
        if value:
            setter(value)


def set_access(task: dsl.PipelineTask, cluster: Cluster) -> None:
    credentials, volume = cluster.credentials, cluster.volume
    if credentials.kind == "secret":
        kubernetes.use_secret_as_volume(task, credentials.secret, KEY_FOLDER)
        task.set_env_variable(credentials.variable, f"{KEY_FOLDER}/{credentials.key}")
    for variable, value in cluster.env.items():
        task.set_env_variable(variable, value)
    if volume.claim:
        kubernetes.mount_pvc(task, volume.claim, volume.mount)


def set_persistence(task: dsl.PipelineTask, stage: str, cluster: Cluster, launcher: bool) -> None:
    retries = cluster.retries
    if retries.count and STAGES[stage].retried:
        # What fails is tried again inside the pod, which knows wrong input from a crash; pods that vanish, by Kubeflow.
        task.set_env_variable("MUST_RETRIES", f"{retries.count},{retries.backoff},{retries.factor}")
        task.set_retry(retries.count, f"{retries.backoff}s", retries.factor, f"{retries.window}s")
    seconds = cluster.timeouts.get(stage)
    if seconds and launcher:
        # It ends its TrainJob itself at the limit, needs a moment for it, and may start another one afterwards.
        seconds = (retries.count + 1) * (seconds + 300) + sum(pauses(retries))
    elif seconds:
        # The stage ends itself at the limit and says so; Kubernetes counts pulling its image too, and says nothing.
        task.set_env_variable("MUST_TIME_LIMIT", str(seconds))
        seconds += BACKSTOP
    if seconds and not (launcher and QUEUE in cluster.labels):  # its TrainJob may wait for days before its time counts
        kubernetes.set_timeout(task, seconds)


def pauses(retries: Retries) -> list[int]:
    """Seconds between the tries of a stage; see must/runtime/supervise.py."""
    return [min(3600, retries.backoff * retries.factor**number) for number in range(retries.count)]


def toleration_fields(toleration: Toleration) -> dict[str, Any]:
    return {name: value for name, value in vars(toleration).items() if value}
