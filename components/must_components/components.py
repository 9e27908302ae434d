"""The Kubeflow components, in the order of the DAG: each hands its parameters and the paths of its artifacts to the
function that its stage's row names (must/stages.py), whose parameters have the same names, and returns metadata.
None is answered from Kubeflow's cache: what it reads may change, and what it wrote may be gone.

All share `work_uri` and `run_id`. `index_sha256` names the shards; others are refused. cluster.yaml's registry, tag and
digests replace the images when the pipeline is compiled. Stages without torch get an image without it, and only
training gets CUDA."""

from collections.abc import Callable
from functools import partial
from typing import Any

from kfp import dsl

from must import __version__
from must.stages import PODS


def component(stage: str) -> Callable[[Callable[..., Any]], Any]:
    """`dsl.component` with the image of the stage's row in must/stages.py."""
    return partial(dsl.component, base_image=f"{PODS[stage].image}:{__version__}", install_kfp_package=False)


@component("inputs")
def inputs(
    work_uri: str,
    run_id: str,
    source: str,
    classes: str,
    model: str,
    pretrained: str = "",
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    shard_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    preset: str = "",
    epochs: int = 0,
    settings: dict = {},  # noqa: B006
    answers: str = "",
    evaluate_split: str = "",
    precision: str = "fp32",
    gate: str = "auto",
    gate_settings: dict = {},  # noqa: B006
    registry_uri: str = "",
    model_name: str = "model",
    runtime: str = "",
) -> str:
    """Checks the run's parameters, its input files and the folders that it writes to, before a later stage would refuse
    them. `runtime` is empty if training is not a TrainJob. Returns a sha256 of class file and model."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    return run_stage("inputs", arguments)


@component("shard")
def shard(
    source: str,
    work_uri: str,
    run_id: str,
    index: dsl.Output[dsl.Dataset],
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
) -> str:
    """Packs images into WebDataset shards below work_uri. `settings`: other parameters of `must shard` by name.
    Returns the sha256 of the shards' index; `index` is a copy of it."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    sharded = run_stage("shard", arguments)
    sha256 = sharded.pop("sha256")
    index.metadata.update(sharded)
    return sha256


@component("shard")
def shard_part(
    part: str,
    source: str,
    work_uri: str,
    run_id: str,
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
):
    """Reads, checks and packs this part's share of the images, by a hash of their names. `part` is I/N, such as 1/4."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    run_stage("shard", arguments)


@component("classifier")
def classifier(
    work_uri: str,
    run_id: str,
    classes: str,
    model: str,
    weights: dsl.Output[dsl.Model],
    pretrained: str = "",
    fingerprint: str = "",
) -> str:
    """Computes the zero-shot classifier, or reuses an earlier run's of the same input. `fingerprint`: what the stage
    inputs returns; '' to compute it. Returns the sha256 of the file."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    computed = run_stage("classifier", arguments)
    weights.metadata["display_name"] = f"zero-shot classifier, {computed['classes']} classes"
    weights.metadata.update(model=model, pretrained=pretrained, classes=computed["classes"], fingerprint=fingerprint)
    return computed["sha256"]


@component("champion")
def champion(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    classifier: dsl.Input[dsl.Model],
    model_name: str,
    version: dsl.OutputPath(str),  # type: ignore[valid-type]
    bundle_uri: dsl.OutputPath(str),  # type: ignore[valid-type]
    key: dsl.OutputPath(str),  # type: ignore[valid-type]
    split: dsl.OutputPath(str),  # type: ignore[valid-type]
    registry_uri: str = "",
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    epochs: int = 0,
    only_new: bool = False,
    gate: str = "auto",
    gate_settings: dict = {},  # noqa: B006
    evaluate_split: str = "",
    answers: str = "",
    processes: int = 1,
) -> str:
    """Reads the registry: the champion's version, or none, and its bundle; checks that the run can train, with so many
    processes, and be evaluated. `key` identifies the run's data, classes, settings, answers and gate; `split` is
    evaluated on. Returns train, or nothing new."""
    arguments = dict(locals())
    from pathlib import Path

    from must.runtime.supervise import run_stage

    best = run_stage("champion", arguments, without=("version", "bundle_uri", "key", "split"))
    for path, name in ((version, "version"), (bundle_uri, "bundle"), (key, "key"), (split, "split")):
        Path(path).write_text(best[name])
    return best["action"]


@component("train")
def train(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    classifier: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    training: dsl.Output[dsl.Metrics],
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    epochs: int = 0,
    processes: str = "auto",
    nodes: dict = {},  # noqa: B006
    model_name: str = "",
    answers: str = "",
) -> str:
    """Trains MUST; a retry resumes from the newest checkpoint. `processes`: a number, or auto for one per GPU; several
    run under torchrun. `nodes`, from cluster.yaml: trains in a TrainJob of Kubeflow Trainer instead, which a retry
    follows; `model_name` is a label of the job. Returns the weights' sha256."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    if nodes:
        trained = run_stage(
            "train", arguments, "must_components.train_job:train_on_nodes", without=("training", "processes")
        )
    else:
        trained = run_stage("train", arguments, without=("training", "nodes", "model_name"))
    for name, value in trained["summary"].items():
        training.log_metric(name, float(value))
    bundle.metadata.update(trained["metadata"])
    return trained["metadata"]["sha256"]


@component("evaluate")
def evaluate(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    bundle: dsl.Input[dsl.Model],
    classifier: dsl.Input[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    details: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    split: str = "test",
) -> float:
    """Compares the adapted model with the zero-shot one on one split, labelled or not; `details` is the folder that
    `must evaluate` writes. Returns top-1 of the adapted model, 0..1; -1 if the split has no labels."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    evaluated = run_stage("evaluate", arguments, without=("figures", "confusion"))
    for name, value in evaluated["figures"].items():
        figures.log_metric(name, value)
    if evaluated["confusion"]:
        confusion.metadata["display_name"] = "confusion matrix of the adapted model"
        confusion.log_confusion_matrix(evaluated["classes"], evaluated["confusion"])
    return evaluated["top1"]


@component("gate")
def gate(
    work_uri: str,
    run_id: str,
    bundle: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    reasons: dsl.Output[dsl.Markdown],
    key: str,
    model_name: str,
    registry_uri: str = "",
    champion: str = "none",
    champion_uri: str = "",
    gate: str = "auto",
    gate_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    split: str = "test",
) -> str:
    """Compares with the zero-shot model, and with the champion if any (labelled: only with that). `details`: what
    `must evaluate` wrote. A stopped model is recorded under `key`. Returns promote or stop."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    return run_stage("gate", arguments)


@component("export")
def export(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    bundle: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    onnx: dsl.Output[dsl.Model],
    precision: str = "fp32",
    embeddings: bool = False,
) -> None:
    """Exports the model with its class names and preprocessing, and checks it on images of the shards."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    facts = run_stage("export", arguments)
    onnx.metadata.update(facts | {"display_name": f"adapted model {facts['sha256'][:12]} (ONNX, {precision})"})


@component("promote")
def promote(
    work_uri: str,
    run_id: str,
    bundle: dsl.Input[dsl.Model],
    onnx: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    promoted: dsl.Output[dsl.Model],
    key: str,
    model_name: str,
    registry_uri: str = "",
    champion: str = "none",
) -> str:
    """Copies bundle and ONNX model, sets LATEST unless another run has changed it; nothing, if the gate stopped the
    model. `champion` is the version that the model was compared with. Returns the new version, or none."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    facts = run_stage("promote", arguments)
    if facts:
        promoted.metadata.update(facts | {"display_name": f"{model_name} {facts['version']}"})
    return facts.get("version", "none")


@component("label")
def label_model(
    work_uri: str, run_id: str, kind: str, model: str = "", model_name: str = "model", registry_uri: str = ""
):
    """The model that labels in all parts: `model`, or the champion of the registry. `kind`: onnx, or bundle for
    torch on a GPU. Its URI is in the run's note."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    run_stage("model", arguments, "must.runtime.stages:choose_model")


@component("label")
def label(
    part: str,
    source: str,
    output: str,
    work_uri: str,
    run_id: str,
    only_new: bool = False,
    least_similarity: float = 0.5,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
):
    """Labels this part's share of the images, those that have no row yet. `part` is I/N, such as 1/4."""
    arguments = dict(locals())
    from must.runtime.supervise import run_stage

    run_stage("label", arguments)


@component("summary")
def summary(
    status: dsl.PipelineTaskFinalStatus, work_uri: str, run_id: str, run_summary: dsl.Output[dsl.Markdown]
) -> None:
    """The exit handler: summarizes the stages' notes: which one failed, its last lines, whether and how to resume."""
    import os

    from must.base.console import attach
    from must.base.storage import wait_for_credentials
    from must.runtime.summary import summarize, write_page
    from must_components.cluster import settle_run

    attach()
    wait_for_credentials(work_uri)
    again = os.environ.get("MUST_RUN_AGAIN") or f"must-pipeline submit --again {run_id}"
    page = summarize(work_uri, run_id, status.state, again, settle_run(work_uri, run_id))
    print(page.to_text())
    write_page(page, run_summary.path)


@component("close")
def close(what: str) -> None:
    """Prints what the stage champion found, beside the group of stages that runs only if there is something new."""
    print(what)
