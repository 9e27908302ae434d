"""What the stage inputs asks besides the library's first look: the cluster, for what later stages need of it."""

from typing import Any

from must.runtime import stages
from must.runtime.places import WorkUri
from must_components.cluster import Cluster
from must_components.serving.manifest import inference_service, require_seen


def inputs(work_uri: str, *, parameters: dict[str, Any], server: dict[str, Any], runtime: str) -> str:
    """As must.runtime.stages.inputs.

    Args:
        parameters: the run's, by their names.
        server: the stage serve's, from cluster.yaml.
        runtime: of the TrainJob that will train; nothing where it is none.

    Raises:
        ValueError: the cluster will refuse what a later stage asks for; TransientError if it does not answer.
    """
    result = stages.inputs(work_uri, parameters=parameters)
    registry = WorkUri(work_uri).registry(parameters.get("registry_uri", ""))
    if parameters.get("serve") == "apply":
        require_seen(registry, server)
        Cluster.to_serve().apply(inference_service(registry, parameters["model_name"], server), dry=True)
    if runtime and (cluster := Cluster.of_this_pod()) is not None:
        cluster.check_trainer(runtime)
    return result
