"""cluster.yaml's decisions for the pods of a server, as the stage serve gets them."""

from __future__ import annotations

from typing import Any

from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.placement import KEY_FOLDER

SERVER_IMAGE = "must-serve"


def server_of(cluster: Cluster) -> dict[str, Any]:
    """A plain dictionary, for it travels as a parameter; must_components/serving/manifest.py reads it."""
    return {
        "image": cluster.image(SERVER_IMAGE),
        "service_account": cluster.service_account,
        "pull_secrets": cluster.pull_secrets,
        "labels": cluster.labels,
        "node_selector": cluster.cpu.node_selector,
        "env": cluster.env,
        "secret": cluster.credentials.secret,
        "secret_mount": KEY_FOLDER,
        "secret_key": cluster.credentials.key,
        "secret_variable": cluster.credentials.variable,
        "claim": cluster.volume.claim,
        "mount": cluster.volume.mount,
    }
