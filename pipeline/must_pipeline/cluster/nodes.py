"""cluster.yaml's decisions for the nodes of a TrainJob, as the launcher gets them."""

from typing import Any

from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.placement import KEY_FOLDER, toleration_fields
from must_pipeline.stages import GPU_IMAGE


def nodes_of(cluster: Cluster) -> dict[str, Any]:
    """A plain dictionary, for it travels as a parameter; must_components/train_job/manifest.py reads it."""
    pool = cluster.gpu if cluster.gpu.count else cluster.cpu
    resources = cluster.resources.get("train")
    return {
        "image": cluster.image(GPU_IMAGE),
        "nodes": cluster.training.nodes,
        "processes": cluster.training.processes,
        "runtime": cluster.training.runtime,
        "gpus": cluster.gpu.count,
        "accelerator": cluster.gpu.accelerator,
        # The SDK knows one number for request and limit.
        "cpu": (resources.cpu_limit or resources.cpu) if resources else "",
        "memory": (resources.memory_limit or resources.memory) if resources else "",
        "node_selector": pool.node_selector,
        "tolerations": [kubernetes_toleration(toleration_fields(t)) for t in pool.tolerations],
        "labels": cluster.labels,
        "service_account": cluster.service_account,
        "pull_secrets": cluster.pull_secrets,
        "shm": cluster.shm,
        "secret": cluster.credentials.secret,
        "secret_mount": KEY_FOLDER,
        "secret_key": cluster.credentials.key,
        "secret_variable": cluster.credentials.variable,
        "env": cluster.env,
        "claim": cluster.volume.claim,
        "mount": cluster.volume.mount,
        "timeout": cluster.timeouts.get("train", 0),
    }


def kubernetes_toleration(fields: dict[str, Any]) -> dict[str, Any]:
    return {"operator": "Equal", **fields}
