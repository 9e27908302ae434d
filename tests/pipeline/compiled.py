"""The compiled DAG of a cluster's file, which takes seconds: once for all tests."""

from __future__ import annotations

from pathlib import Path

from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from tests.once import made_once


def compiled_for(cluster: Path) -> Path:
    """The file; only read it. `cluster` is one of the package's, whose names differ."""
    name = "pipeline.yaml"
    return made_once(f"compiled-{cluster.stem}", lambda to: compile_pipeline(load_cluster(cluster), to / name)) / name
