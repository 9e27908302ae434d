"""Whether a pool's nodes may be taken back at any moment, by what clouds call them."""

import re

from must_pipeline.cluster.config import Cluster, CpuPool, GpuPool

# GKE's gke-spot and gke-preemptible, EKS' capacityType: SPOT, Karpenter's capacity-type, AKS' scalesetpriority.
WORD = re.compile(r"(?i)\b(spot|preemptible|preemptable)\b")
NOT = ("false", "no", "0")


def is_spot(pool: CpuPool | GpuPool) -> bool:
    """By the labels that its pods ask for and the taints that they tolerate."""
    pairs = list(pool.node_selector.items()) + [(one.key, one.value) for one in pool.tolerations]
    return any(WORD.search(f"{key} {value}") and value.lower() not in NOT for key, value in pairs)


def warning(cluster: Cluster) -> str:
    """About training in a stage's own pod on such nodes; "" if there is nothing to say."""
    pool = cluster.gpu if cluster.uses_gpu("train") else cluster.cpu
    if cluster.trains_in_trainjob or not is_spot(pool):
        return ""
    return (
        "training runs in the stage's own pod on spot nodes: with Kubeflow's own settings the run ends when its "
        "node is shut down or the pod is evicted. training.as: trainjob outlives that, or an administrator applies "
        "deploy/argo-retries.yaml (docs/kubeflow.md, Pods that vanish)"
    )
