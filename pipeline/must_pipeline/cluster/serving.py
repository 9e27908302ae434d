"""cluster.yaml's decisions for the pods of a server, as the stage serve gets them."""

from typing import Any

from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.nodes import kubernetes_toleration
from must_pipeline.cluster.placement import KEY_FOLDER, QUEUE, toleration_fields

SERVER_IMAGE = "must-serve"


def server_of(cluster: Cluster) -> dict[str, Any]:
    """A plain dictionary, for it travels as a parameter; must_components/serving/manifest.py reads it."""
    return {
        "image": cluster.image(SERVER_IMAGE),
        "service_account": cluster.service_account,
        "pull_secrets": cluster.pull_secrets,
        # A server is no batch job: KServe hands the labels to its pods, and they would wait for Kueue's quota.
        "labels": {name: value for name, value in cluster.labels.items() if name != QUEUE},
        "node_selector": cluster.cpu.node_selector,
        "tolerations": [kubernetes_toleration(toleration_fields(t)) for t in cluster.cpu.tolerations],
        "env": cluster.env,
        "secret": cluster.credentials.secret,
        "secret_mount": KEY_FOLDER,
        "secret_key": cluster.credentials.key,
        "secret_variable": cluster.credentials.variable,
        "claim": cluster.volume.claim,
        "mount": cluster.volume.mount,
    }
