"""cluster.yaml, read and checked."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.cluster.config import Cluster
from pipeline.cluster.read import build
from pipeline.cluster.rules import check


def load_cluster(path: Path) -> Cluster:
    """Raises ValueError: a key that is not known (the nearest known one is given), a wrong value, a contradiction."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"--cluster {path}: no such file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--cluster {path}: no valid YAML: {' '.join(str(error).split())}") from None
    cluster = build(Cluster, content or {}, "")
    check(cluster)
    return cluster
