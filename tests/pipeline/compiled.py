"""Compiled DAGs, in a process of their own: compiling takes kfp two seconds, and ten times as long in a process of
pytest, because for each setting of a task kfp looks at its callers and through all modules that are imported."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from must_pipeline.cluster import ClusterConfig, load_cluster
from must_pipeline.compile import compile_pipeline, load_documents
from must_pipeline.dag import make_pipeline
from tests.common import ROOT
from tests.once import made_once

CLUSTER = ROOT / "pipeline" / "cluster.yaml"
COMPILED = CLUSTER.with_name("must_pipeline.yaml")  # for that cluster
LABELLING = CLUSTER.with_name("must_label.yaml")  # the second pipeline


def compile_apart(cluster: ClusterConfig, output: Path, make: Callable[[ClusterConfig], Any] = make_pipeline) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(compile_pipeline, cluster, output, make).result()


def compiled_for(cluster: Path) -> Path:
    """The file, made once for all tests; only read it. `cluster` is one of the package's, whose names differ."""
    name = "pipeline.yaml"
    return made_once(f"compiled-{cluster.stem}", lambda to: compile_apart(load_cluster(cluster), to / name)) / name


OF_LABELLING = {"model", "label"}  # stages of the second pipeline alone


class Compiled:
    """A compiled pipeline: the containers, tasks and Kubernetes settings of a stage."""

    def __init__(self, file):
        self.spec, platform = load_documents(file.read_text())
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


def longest_path(spec, component=None):
    """(seconds, tasks) of the longest way through a DAG of the compiled pipeline, as Argo paces it: for a task 20
    seconds, for Kubeflow's driver and its pod, for a group's driver 10. The exit task comes after all others."""
    tasks = (component or spec["root"])["dag"]["tasks"]
    found = {}

    def to_end(name):
        """The longest way to the end of a task."""
        if name not in found:
            task, ways = tasks[name], [(0, [])]
            ways += [to_end(before) for before in task.get("dependentTasks", [])]
            inside = spec["components"][task["componentRef"]["name"]]
            seconds, path = longest_path(spec, inside) if "dag" in inside else (20, [name])
            before = max(ways)
            found[name] = before[0] + seconds, before[1] + path
        return found[name]

    seconds, path = max(map(to_end, tasks))
    return seconds + 10, path  # the DAG's own driver
