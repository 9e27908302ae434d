"""Puts cluster.yaml's decisions on a task of Vertex AI Pipelines: image, limits, accelerator, retries.

All of it is in the one document that Vertex reads; nothing of Kubernetes is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import yaml

from must.base.parameters import require
from must_pipeline.cluster.config import Cluster, Resources
from must_pipeline.stages import GPU_IMAGE, STAGES

if TYPE_CHECKING:
    from kfp import dsl

LONGEST_PAUSE = 3600  # seconds between two tries of a task
DAY, WEEK = 86_400, 604_800  # seconds: how long a job may wait for machines, and run; Vertex's own limits
LAUNCHER = "gcr.io/ml-pipeline/google-cloud-pipeline-components:2.22.0"


def configure_vertex_task(task: dsl.PipelineTask, stage: str, cluster: Cluster, title: str = "") -> dsl.PipelineTask:
    """As placement.py's configure_task, of which this has the part that Vertex knows."""
    row = STAGES[stage]
    task.set_display_name(title or stage).set_caching_options(row.cached)
    retries = cluster.retries
    if retries.count and row.retried:
        task.set_retry(retries.count, f"{retries.backoff}s", retries.factor, f"{LONGEST_PAUSE}s")
    if stage == "train" and cluster.trains_in_customjob:
        return task  # the task only submits the job, which custom_job made; its image is Google's
    gpu = cluster.uses_gpu(stage)
    task.set_container_image(cluster.image(GPU_IMAGE if gpu else row.image))
    limits = cluster.resources.get(stage, Resources())
    if limits.cpu_limit:
        task.set_cpu_limit(limits.cpu_limit)
    if limits.memory_limit:
        task.set_memory_limit(limits.memory_limit)
    if gpu:
        task.set_accelerator_type(cluster.gpu.accelerator).set_accelerator_limit(cluster.gpu.count)
    for variable, value in cluster.env.items():
        task.set_env_variable(variable, value)
    if retries.count and row.retried:
        # What fails is tried again inside the container, which knows wrong input from a crash; machines, by Vertex.
        task.set_env_variable("MUST_RETRIES", f"{retries.count},{retries.backoff},{retries.factor}")
    return task


def custom_job(component: Any, cluster: Cluster) -> Callable[..., dsl.PipelineTask]:
    """The component as a CustomJob on training.nodes machines of vertex.machine; each runs the component.

    The task's container is Google's launcher, which makes the job, waits for it and ends it with the task. A job that
    fails is not tried again within: all machines have to begin anew, which is the task's retry.
    """
    from google.protobuf.json_format import MessageToDict
    from kfp import components

    spec = MessageToDict(component.pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    job = json.dumps(job_of(executor["container"], cluster))
    executor["container"] = {
        "image": LAUNCHER,
        "command": ["python3", "-u", "-m", "google_cloud_pipeline_components.container.v1.custom_job.launcher"],
        "args": [
            "--type", "CustomJob", "--payload", job, "--project", "{{$.pipeline_google_cloud_project_id}}",
            "--location", "{{$.pipeline_google_cloud_location}}",
            "--gcp_resources", "{{$.outputs.parameters['gcp_resources'].output_file}}",
        ],
    }  # fmt: skip
    for interface in (*spec["components"].values(), spec["root"]):  # where the launcher notes which job it made
        outputs = interface.setdefault("outputDefinitions", {}).setdefault("parameters", {})
        outputs["gcp_resources"] = {"parameterType": "STRING"}
    return cast(Callable[..., Any], components.load_component_from_text(yaml.safe_dump(spec)))


def job_of(container: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    """The message of a CustomJob whose machines run the container; the first is a pool of its own, as Vertex wants."""
    vertex, gpu, seconds = cluster.vertex, cluster.gpu, cluster.timeouts.get("train", 0)
    machine: dict[str, Any] = {"machine_type": vertex.machine}
    if gpu.count:
        machine |= {"accelerator_type": gpu.accelerator, "accelerator_count": gpu.count}
    pool = {
        "machine_spec": machine,
        "replica_count": 1,
        "container_spec": {
            "image_uri": cluster.image(GPU_IMAGE),
            "command": container["command"],
            # The executor's input becomes a string within the string that the job is.
            "args": ["{{$.json_escape[1]}}" if word == "{{$}}" else word for word in container["args"]],
            "env": [{"name": name, "value": value} for name, value in cluster.env.items()],
        },
        "disk_spec": {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": vertex.disk_gb},
    }
    spec: dict[str, Any] = {
        "worker_pool_specs": [pool],
        "scheduling": {
            "timeout": f"{seconds or WEEK}s", "strategy": vertex.strategy, "max_wait_duration": f"{DAY}s",
        },
        "persistent_resource_id": "{{$.pipeline_persistent_resource_id}}",
    }  # fmt: skip
    if cluster.training.nodes > 1:
        spec["worker_pool_specs"].append(pool | {"replica_count": cluster.training.nodes - 1})
    if cluster.service_account:
        spec["service_account"] = cluster.service_account
    if vertex.network:
        spec["network"] = vertex.network
    return {"display_name": "must-train", "job_spec": spec, "labels": cluster.labels}


def require_package(name: str) -> None:
    """Raises ValueError: a package of the extra `vertex` is not installed here."""
    require(is_installed(name), f"kind: vertex needs the package {name.replace('.', '-')} here: "
            "pip install 'must-clip[vertex]'")  # fmt: skip


def is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # nor is what it is in
        return False
