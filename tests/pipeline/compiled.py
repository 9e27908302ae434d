"""Compiled DAGs, in a process of their own: compiling takes kfp two seconds, and ten times as long in a process of
pytest, because for each setting of a task kfp looks at its callers and through all modules that are imported."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.files import documents
from tests.once import made_once


def compile_apart(cluster: Cluster, output: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(compile_pipeline, cluster, output).result()


def compiled_for(cluster: Path) -> Path:
    """The file, made once for all tests; only read it. `cluster` is one of the package's, whose names differ."""
    name = "pipeline.yaml"
    return made_once(f"compiled-{cluster.stem}", lambda to: compile_apart(load_cluster(cluster), to / name)) / name


class Compiled:
    """A compiled pipeline: the containers, tasks and Kubernetes settings of a stage."""

    def __init__(self, file):
        self.spec, platform = documents(file.read_text())
        self.platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        parts = [self.spec["root"], *self.spec["components"].values()]
        self.groups = [part["dag"]["tasks"] for part in parts if "dag" in part]
        self.tasks = {name: task for group in self.groups for name, task in group.items()}

    def container(self, stage):
        return self.spec["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]

    def environment(self, stage):
        return {one["name"]: one["value"] for one in self.container(stage).get("env", [])}

    def constant(self, stage, parameter):
        return self.tasks[stage]["inputs"]["parameters"][parameter]["runtimeValue"]["constant"]
