"""cluster.yaml's decisions for pods that others make: the nodes of a TrainJob, and a server's.

Plain dictionaries, for they travel as parameters; the manifest.py of must_components' train_job and serving read them.
"""

from typing import Any

from must_pipeline.cluster.config import Cluster, CpuPool, GpuPool
from must_pipeline.cluster.placement import KEY_FOLDER, QUEUE, toleration_fields
from must_pipeline.stages import GPU_IMAGE

SERVER_IMAGE = "must-serve"


def nodes_of(cluster: Cluster) -> dict[str, Any]:
    """As the launcher gets them."""
    resources = cluster.resources.get("train")
    return pods_of(cluster, cluster.gpu if cluster.gpu.count else cluster.cpu) | {
        "image": cluster.image(GPU_IMAGE),
        "nodes": cluster.training.nodes,
        "processes": cluster.training.processes,
        "runtime": cluster.training.runtime,
        "gpus": cluster.gpu.count,
        "accelerator": cluster.gpu.accelerator,
        # The SDK knows one number for request and limit.
        "cpu": (resources.cpu_limit or resources.cpu) if resources else "",
        "memory": (resources.memory_limit or resources.memory) if resources else "",
        "shm": cluster.shm,
        "timeout": cluster.timeouts.get("train", 0),
    }


def server_of(cluster: Cluster) -> dict[str, Any]:
    """As the stage serve gets it."""
    # A server is no batch job: KServe hands the labels to its pods, and they would wait for Kueue's quota.
    labels = {name: value for name, value in cluster.labels.items() if name != QUEUE}
    size = {"size": vars(cluster.server)}
    return pods_of(cluster, cluster.cpu) | {"image": cluster.image(SERVER_IMAGE), "labels": labels} | size


def pods_of(cluster: Cluster, pool: CpuPool | GpuPool) -> dict[str, Any]:
    return {
        "node_selector": pool.node_selector,
        "tolerations": [{"operator": "Equal", **toleration_fields(one)} for one in pool.tolerations],
        "labels": cluster.labels,
        "service_account": cluster.service_account,
        "pull_secrets": cluster.pull_secrets,
        "secret": cluster.credentials.secret,
        "secret_mount": KEY_FOLDER,
        "secret_key": cluster.credentials.key,
        "secret_variable": cluster.credentials.variable,
        "env": cluster.env,
        "claim": cluster.volume.claim,
        "mount": cluster.volume.mount,
    }
