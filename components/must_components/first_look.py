"""The stage inputs: the library's checks, and checks that the cluster has what later stages need."""

from typing import Any

from must.runtime import stages
from must.runtime.places import WorkUri
from must_components.cluster import Cluster
from must_components.serving.manifest import inference_service, require_reachable


def inputs(work_uri: str, *, parameters: dict[str, Any], server: dict[str, Any], runtime: str) -> str:
    """Like must.runtime.stages.inputs; `runtime` is empty if training is not a TrainJob.

    Raises ValueError: the cluster would refuse a request of a later stage; TransientError if it does not answer.
    """
    result = stages.inputs(work_uri, parameters=parameters)
    registry = WorkUri(work_uri).registry(parameters.get("registry_uri", ""))
    if parameters.get("serve") == "apply":
        require_reachable(registry, server)
        Cluster.to_serve().apply(inference_service(registry, parameters["model_name"], server), dry=True)
    if runtime and (cluster := Cluster.of_this_pod()) is not None:
        cluster.check_trainer(runtime)
    return result
