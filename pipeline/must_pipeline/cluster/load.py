"""cluster.yaml, read and checked."""

from pathlib import Path

from must.base.parameters import convert_fields, read_mapping
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.rules import check


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: a key that is not known (the nearest known one is given), a wrong value, a contradiction."""
    cluster: Cluster = convert_fields(read_mapping(path, f"--cluster {path}"), Cluster, "")
    check(cluster)
    return cluster
