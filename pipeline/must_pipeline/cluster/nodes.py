"""The settings of cluster.yaml for pods that other controllers create: a TrainJob's nodes, and a server's pods.

Plain dictionaries, because they are pipeline parameters, read by manifest.py of must_components' train_job and serving.
"""

import re
from typing import Any

from must_pipeline.cluster.config import Cluster, CpuPool, GpuPool
from must_pipeline.cluster.placement import KEY_FOLDER, QUEUE, toleration_fields
from must_pipeline.stages import GPU_IMAGE

SERVER_IMAGE = "must-serve"


def encode_nodes(cluster: Cluster) -> dict[str, Any]:
    """The launcher's parameter `nodes`."""
    resources = cluster.resources.get("train")
    return count_pods(cluster, cluster.gpu if cluster.gpu.count else cluster.cpu) | {
        "image": cluster.image(GPU_IMAGE),
        "nodes": cluster.training.nodes,
        "processes": cluster.training.processes,
        "runtime": cluster.training.runtime,
        "gpus": cluster.gpu.count,
        "accelerator": cluster.gpu.accelerator,
        # A node's request is its limit.
        "cpu": (resources.cpu_limit or resources.cpu) if resources else "",
        "memory": (resources.memory_limit or resources.memory) if resources else "",
        "shm": cluster.shm,
        "deadline": cluster.timeouts.get("train", cluster.retries.window),
    }


def encode_server(cluster: Cluster) -> dict[str, Any]:
    """The parameter `server` of the stage serve."""
    # Without Kueue's label: KServe copies the labels to the server's pods, which would wait for a quota of batch jobs.
    labels = {name: value for name, value in cluster.labels.items() if name != QUEUE}
    size = {"size": vars(cluster.server)}
    return count_pods(cluster, cluster.cpu) | {"image": cluster.image(SERVER_IMAGE), "labels": labels} | size


def count_pods(cluster: Cluster, pool: CpuPool | GpuPool) -> dict[str, Any]:
    return {
        "node_selector": pool.node_selector,
        "tolerations": [{"operator": "Equal", **toleration_fields(toleration)} for toleration in pool.tolerations],
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


# GKE's gke-spot and gke-preemptible, EKS' capacityType: SPOT, Karpenter's capacity-type, AKS' scalesetpriority.
SPOT = re.compile(r"(?i)\b(spot|preemptible|preemptable)\b")
FALSE_VALUES = ("false", "no", "0")


def is_spot(pool: CpuPool | GpuPool) -> bool:
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
