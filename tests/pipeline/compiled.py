"""Compiled DAGs, in a process of their own.

Compiling takes kfp two seconds, and ten times as long in a process of pytest: for each setting of a task kfp looks at
its callers and through all modules that are imported.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from tests.once import made_once


def compile_apart(cluster: Cluster, output: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(compile_pipeline, cluster, output).result()


def compiled_for(cluster: Path) -> Path:
    """The file, made once for all tests; only read it. `cluster` is one of the package's, whose names differ."""
    name = "pipeline.yaml"
    return made_once(f"compiled-{cluster.stem}", lambda to: compile_apart(load_cluster(cluster), to / name)) / name
