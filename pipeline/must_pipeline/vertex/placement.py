"""Puts cluster.yaml's decisions on a task of Vertex AI Pipelines: image, limits, accelerator, retries.

All of it is in the one document that Vertex reads; nothing of Kubernetes is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from kfp import dsl

from must.base.parameters import require
from must_pipeline.cluster.config import Cluster, Resources
from must_pipeline.stages import GPU_IMAGE, STAGES

LONGEST_PAUSE = 3600  # seconds between two tries of a task


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

    A job that fails is not tried again within: all machines have to begin anew, which is the task's retry.
    """
    require_package("google_cloud_pipeline_components")
    from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

    vertex, gpu = cluster.vertex, cluster.gpu
    component = copy.deepcopy(component)
    component.component_spec.implementation.container.image = cluster.image(GPU_IMAGE)
    seconds = cluster.timeouts.get("train", 0)
    return create_custom_training_job_from_component(
        component,
        display_name="must-train",
        replica_count=cluster.training.nodes,
        machine_type=vertex.machine,
        accelerator_type=gpu.accelerator if gpu.count else "",
        accelerator_count=gpu.count,
        boot_disk_size_gb=vertex.disk_gb,
        strategy=vertex.strategy,
        service_account=cluster.service_account,
        network=vertex.network,
        labels=cluster.labels,
        env=[{"name": name, "value": value} for name, value in cluster.env.items()],
        **({"timeout": f"{seconds}s"} if seconds else {}),
    )


def require_package(name: str) -> None:
    """Raises ValueError: a package of the extra `vertex` is not installed here."""
    try:
        found = find_spec(name) is not None
    except ModuleNotFoundError:  # nor is what it is in
        found = False
    require(found, f"kind: vertex needs the package {name.replace('_', '-').replace('.', '-')} here: "
            "pip install 'must-clip[vertex]'")  # fmt: skip
