"""The DAG: shard and classifier; champion; then, if there is something new, train, evaluate, export and promote.

Argo looks at a run every ten seconds, so that a task takes 20 seconds or more, for Kubeflow's driver and its own pod,
and a group of tasks 10, for its driver. So there is one group: evaluate decides; export and promote read its decision.

The shards' parts are a loop of pods. Each writes to the bucket, from which the next stage reads; it returns nothing."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from kfp import dsl

from must.config.defaults import list_parts
from must.config.run import LabelRunParameters, RunParameters
from must_components.components import COMPONENTS, declare, describe_fields, list_parameters
from must_pipeline import DESCRIPTION
from must_pipeline.cluster import ClusterConfig
from must_pipeline.placement import configure_task, encode_nodes

RUN_ID = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # used by `submit --again` and by the run's notes


def add_task(cluster: ClusterConfig, run: dict[str, Any], name: str, /, after: Any = None, **inputs: Any) -> Any:
    """A task of the component `name`, with its place in the cluster. A parameter that is not among `inputs` gets the
    value of the run's parameter of that name."""
    component = COMPONENTS[name]
    task = component(**{key: run[key] for key in component.component_spec.inputs if key in run} | inputs)
    if after is not None:
        task.after(after)
    return configure_task(task, name, cluster)


def make_builder(parameters: Any, build: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """The function that kfp calls to build a pipeline, with the fields of the dataclass `parameters` as its own."""

    def pipeline(*values: Any) -> None:
        build(dict(zip(inspect.signature(pipeline).parameters, values, strict=True)))

    declare(pipeline, list_parameters(parameters))
    pipeline.__doc__ = f"{parameters.__doc__}\n\n{describe_fields(parameters)}"
    return pipeline


def make_label_pipeline(cluster: ClusterConfig) -> Any:
    """The second pipeline: images and a model in, a table of labels in parts out."""

    def build(run: dict[str, Any]) -> None:
        add = partial(add_task, cluster, run | {"run_id": RUN_ID})
        with dsl.ExitHandler(add("summary"), name="stages"):
            kind = "bundle" if cluster.uses_gpu("label") else "onnx"
            chosen = add("model", kind=kind, parts=cluster.label.pods)
            with dsl.ParallelFor(list_parts(cluster.label.pods), name="parts") as part:
                add("label", chosen, part=part)

    description = "Labels the images of a folder or bucket with an adapted model."
    return dsl.pipeline(name="must-label", description=description)(make_builder(LabelRunParameters, build))


def make_pipeline(cluster: ClusterConfig) -> Any:
    """The pipeline for a cluster; must/table.py has a row for each of its tasks."""

    def build(run: dict[str, Any]) -> None:
        add = partial(add_task, cluster, run | {"run_id": RUN_ID})
        with dsl.ExitHandler(add("summary"), name="stages"):
            previous = inputs = add("inputs", runtime=cluster.training.runtime if cluster.trains_in_trainjob else "")
            classifier = add("classifier", fingerprint=inputs.outputs["fingerprint"]).outputs["weights"]
            if cluster.shard.pods > 1:
                with dsl.ParallelFor(list_parts(cluster.shard.pods), name="shard parts") as part:
                    previous = add("shard-part", inputs, part=part)
            index_sha256 = add("shard", previous).outputs["index_sha256"]
            made_from = {"index_sha256": index_sha256, "classifier": classifier}
            champion = add("champion", processes=cluster.training_processes, **made_from).outputs
            with dsl.If(champion["action"] == "train", name="something new"):
                if cluster.trains_in_trainjob:
                    trained = add("train-on-nodes", nodes=encode_nodes(cluster), **made_from)
                else:
                    trained = add("train", processes=cluster.training.processes, **made_from)
                bundle, split = trained.outputs["bundle"], champion["split"]
                against = {"key": champion["key"], "champion": champion["version"]}
                uri = champion["bundle_uri"]
                evaluated = add(
                    "evaluate", bundle=bundle, split=split, champion_uri=uri, **made_from, **against
                ).outputs
                judged = {"bundle": bundle, "details": evaluated["details"], "decision": evaluated["decision"]}
                onnx = add("export", index_sha256=index_sha256, **judged).outputs["onnx"]
                add("promote", onnx=onnx, **judged, **against)
            # Kubeflow marks a group as complete when a task in it ends, which none would do after the skipped group.
            add("is-anything-new", action=champion["action"])

    return dsl.pipeline(name="must", description=DESCRIPTION)(make_builder(RunParameters, build))
