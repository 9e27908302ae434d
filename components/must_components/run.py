"""Runs a component in its pod: python3 -m must_components.run NAME EXECUTOR_INPUT.

Kubeflow's executor input has the values of the parameters, the URIs of the artifacts, and where the outputs go, in
JSON; its launcher has downloaded the artifacts that are read, and uploads those that are written. Both formats, and the
local paths of artifacts in buckets, are those of Kubeflow Pipelines 2.17 (kfp/dsl/executor.py,
backend/src/v2/component/launcher_v2.go). So no image needs kfp."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from must.base.console import attach
from must.base.processes import PARENT, end_with_parent
from must.pods.supervise import run_stage
from must.table import COMPONENTS

LOCAL = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}  # where the launcher keeps a bucket's artifacts


def run_component(name: str, executor_input: dict[str, Any]) -> dict[str, Any]:
    """Runs the stage, and returns Kubeflow's executor output: the outputs' values, and the artifacts' metadata."""
    pod, inputs, outputs = COMPONENTS[name], executor_input.get("inputs", {}), executor_input["outputs"]
    places = inputs.get("artifacts", {}) | outputs.get("artifacts", {})
    given = {key: places[key]["artifacts"][0] for key in (*pod.reads, *pod.writes, *pod.shows)}
    paths = {key: find_local_path(given[key]["uri"]) for key in (*pod.reads, *pod.writes)}
    for key in pod.writes:
        Path(paths[key]).parent.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in inputs.get("parameterValues", {}).items() if value is not None}
    result = run_stage(name, values | paths) or {}
    for key in pod.writes:  # Kubeflow lists each output that a component declares, also one without an object
        if not Path(paths[key]).exists():
            Path(paths[key]).write_text("not made\n")
            result[key] = {"display_name": f"no {key}: not made"}
    artifacts = {key: given[key] | {"metadata": result.get(key, {})} for key in (*pod.writes, *pod.shows)}
    kept = ("name", "uri", "metadata")
    return {
        "parameterValues": {key: result[key] for key in pod.returns},
        "artifacts": {key: {"artifacts": [{k: one[k] for k in kept if k in one}]} for key, one in artifacts.items()},
    }


def find_local_path(uri: str) -> str:
    prefix = next((prefix for prefix in LOCAL if uri.startswith(prefix)), "")
    return LOCAL.get(prefix, "") + uri.removeprefix(prefix)


def main() -> None:
    if PARENT in os.environ:  # of a run on this machine
        end_with_parent()
    attach()
    name, text = sys.argv[1:]
    executor_input = json.loads(text)
    output = run_component(name, executor_input)
    file = Path(executor_input["outputs"]["outputFile"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(output))


if __name__ == "__main__":
    main()
