"""The table of stages: what each is called, what runs it, and what it needs. It imports nothing of must.

From a row come the command and its help, the function at `must`, the lines that name what to type next, and, where a
row has a Pod, the component, its place in cluster.yaml and its resources in the pipelines. The parameters of a stage
are a dataclass in must/config, the edges of the pipelines are in must_pipeline/dag.py."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from must.base.parameters import StageConfig


NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Pod(NamedTuple):
    """What a stage needs in a pipeline, and the interface of its component.

    The component's parameters are those of the function, by name, type, default and description in the docstring, with
    `work_uri` and `run_id`. Artifacts are {name: one of kfp's types, such as Model}; the function gets
    their paths. It returns a JSON object: {name of an output: its value, or an artifact's metadata}."""

    image: str  # one of IMAGES; on a GPU it is GPU_IMAGE instead
    # The memory limit in GiB if cluster.yaml sets none. ViT-B/16 in float32 with a copy of its weights and a forward
    # batch of 64 took 1.5 (x86-64, PyTorch); ViT-L has three times the weights. `must shard` may take a GB per worker
    # for decoding.
    memory: int
    function: str
    takes: str = ""  # a dataclass with more parameters, for a function with **values
    reads: Mapping[str, str] = NONE  # artifacts of earlier stages
    writes: Mapping[str, str] = NONE  # artifacts
    shows: Mapping[str, str] = NONE  # artifacts without a file: metadata for Kubeflow's page
    returns: Mapping[str, type] = NONE  # output parameters
    gpu: bool = False  # can use a GPU, if cluster.yaml's gpu.stages names it
    loaders: bool = False  # PyTorch's loader processes pass tensors through /dev/shm
    supervised: bool = True  # has a process of its own, and a note
    retried: bool = True  # False for the exit task, whose own failures would hide the run's
    of: str = ""  # the stage whose other component it is: with its resources, limits and note
    title: str = ""  # its name in Kubeflow's graph, if that is not the row's


class Stage(NamedTuple):
    """Functions and classes are "module:name", imported when they are used: `must shard` runs where no torch is."""

    help: str = ""
    parameters: str = ""  # a StageConfig; "" if it is no command: only a pipeline has the stage
    function: str = ""  # takes the parameters
    torch: bool = False  # it imports torch, which takes seconds: the terminal shows a message
    next: str = ""  # commands that use its output, with values of its parameters, separated by "; "
    next_in_work: str = ""  # the same where it read and wrote in WORK
    pod: Pod | None = None  # the row's name is that in Kubeflow's graph, on the run's page and in cluster.yaml

    @property
    def config(self) -> type[StageConfig]:
        return import_name(self.parameters)


def import_name(place: str) -> Any:
    """What "module:name" names."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


IMAGES: Final = ("must-shard", "must-torch", "must-train", "must-serve")
GPU_IMAGE: Final = "must-train"  # has torch with CUDA
JUDGED: Final = {"bundle": "Model", "details": "Artifact", "decision": "Artifact"}  # a model, its measures, its gate

STAGES: Final[dict[str, Stage]] = {
    "adapt": Stage(
        "Adapt CLIP to images without labels: one pass gives a model, labels, a report; with a GPU, training follows.",
        "must.config.adapt:AdaptConfig", "must.api.adapt:adapt",
        next="must review {output}; must predict FOLDER --model {output}; must export {output}",
    ),
    "inputs": Stage(
        pod=Pod(
            "must-torch", 8, "must_components.cluster:check_inputs", takes="must.config.run:RunParameters",
            returns={"fingerprint": str},
        ),
    ),
    "shard": Stage(
        "Pack images into WebDataset shards with an index, ready to train on.",
        "must.config.train:ShardConfig", "must.data.shards.build:shard",
        next="must classifier --classes FILE --model ViT-B-16/datacomp_xl_s13b_b90k --output classifier.safetensors",
        pod=Pod(
            "must-shard", 32, "must.pods.stages:shard", takes="must.config.run:SourceParameters",
            writes={"index": "Dataset"}, returns={"index_sha256": str},
        ),
    ),
    "shard-part": Stage(
        pod=Pod(
            "must-shard", 32, "must.pods.stages:shard_part", takes="must.config.run:SourceParameters", of="shard"
        ),
    ),
    "classifier": Stage(
        "Turn class names and prompt templates into zero-shot text classifier weights.",
        "must.config.train:ClassifierConfig", "must.model.classifier:classifier", torch=True,
        next="must train --shards SHARDS --classifier {output} --output model",
        pod=Pod("must-torch", 16, "must.pods.stages:classifier", writes={"weights": "Model"}, gpu=True),
    ),
    "champion": Stage(
        pod=Pod(
            "must-torch", 8, "must.pods.stages:champion", reads={"classifier": "Model"},
            returns=dict.fromkeys(("action", "version", "bundle_uri", "key", "split"), str),
        ),
    ),
    "plan": Stage(
        "Estimate steps, hours, memory and disk of `must train` on this machine; trains nothing.",
        "must.config.train:PlanConfig", "must.training.plan:plan", torch=True,
    ),
    "train": Stage(
        "Adapt the zero-shot classifier to unlabeled images with masked unsupervised self-training (MUST).",
        "must.config.train:TrainConfig", "must.training.trainer:train", torch=True,
        next="must evaluate --model {output} --baseline {classifier} --shards {shards} --output report",
        pod=Pod(
            "must-train", 48, "must.pods.training:train", reads={"classifier": "Model"}, writes={"bundle": "Model"},
            shows={"training": "Metrics"}, gpu=True, loaders=True,
        ),
    ),
    "train-on-nodes": Stage(
        pod=Pod(
            "must-shard", 16, "must_components.train_job:train_on_nodes", reads={"classifier": "Model"},
            writes={"bundle": "Model"}, shows={"training": "Metrics"}, of="train", title="train",
        ),
    ),
    "refine": Stage(
        "Give the model a memory of the unlabeled images and of people's answers, and the images better labels.",
        "must.config.evaluate:RefineConfig", "must.memory.refine:refine", torch=True,
        next_in_work="must evaluate {work}; must export {work}",
    ),
    "review": Stage(
        "Ask a person for classes of images in a browser; the answers measure accuracy and correct labels.",
        "must.config.evaluate:ReviewConfig", "must.reviewing.review:review",
    ),
    "evaluate": Stage(
        "Measure the adapted model against the zero-shot one; write metrics.json and report.html.",
        "must.config.evaluate:EvaluateConfig", "must.evaluation.evaluate:evaluate", torch=True,
        next="must gate --metrics {output}/metrics.json --output decision.json; must export --model {model} "
        "--shards {shards} --split {split} --metrics {output}/metrics.json --output onnx",
        next_in_work="must gate {work}; must export {work}",
        pod=Pod(
            "must-torch", 32, "must.pods.stages:evaluate", reads={"bundle": "Model", "classifier": "Model"},
            writes={"details": "Artifact", "report": "HTML", "decision": "Artifact", "reasons": "Markdown"},
            returns={"top1": float}, shows={"figures": "Metrics", "confusion": "ClassificationMetrics"}, gpu=True,
            loaders=True,
        ),
    ),
    "export": Stage(
        "Write the model as ONNX, or as a folder that open_clip loads; checked against PyTorch.",
        "must.config.deploy:ExportConfig", "must.exporting.export:export", torch=True,
        next="must predict FOLDER --model {output}; must serve --model {output}",
        pod=Pod(
            "must-torch", 32, "must.pods.stages:export", reads=JUDGED, writes={"onnx": "Model"}, loaders=True,
        ),
    ),
    "gate": Stage(
        "Decide from metrics.json whether the adapted model may replace the one in use, and say why.",
        "must.config.evaluate:GateConfig", "must.evaluation.gate:gate",
    ),
    "promote": Stage(
        "Copy a model to the registry and make it the champion, the one in use; --rollback restores the one before.",
        "must.config.deploy:PromoteConfig", "must.registry.promote:promote",
        pod=Pod(
            "must-shard", 16, "must.pods.stages:promote", reads=JUDGED | {"onnx": "Model"},
            writes={"run_page": "Markdown"}, returns={"version": str},
        ),
    ),
    "predict": Stage(
        "Classify images, few or many, with the ONNX file alone (no PyTorch) or with a bundle.",
        "must.config.deploy:PredictConfig", "must.prediction.predict:predict",
    ),
    "model": Stage(pod=Pod("must-shard", 4, "must.pods.labelling:model", returns={"address": str})),
    "label": Stage(pod=Pod("must-serve", 16, "must.pods.labelling:label", gpu=True)),
    "serve": Stage(
        "Serve the ONNX file, or a registry's champion, over HTTP: pictures in, names out (no PyTorch).",
        "must.config.deploy:ServeConfig", "must.serving.serve:serve",
    ),
    "sort": Stage(
        "Put the labelled images into a folder for each class, as links or copies.",
        "must.config.adapt:SortConfig", "must.api.sort:sort",
    ),
    "demo": Stage(
        "Write the bundled data set (handwritten digits), class names and tiny CLIP (computer fonts) to a folder.",
        "must.config.adapt:DemoConfig", "must.api.demo:demo",
        next="must adapt {output}/images/unlabeled --classes {output}/classes.yaml --model {output}/model "
        "--test-images {output}/images/test --output {output}/work",
    ),
    "quickstart": Stage(
        "Show it all with the bundled digits: one pass, the page for answers in the browser, and what they change.",
        "must.config.adapt:QuickstartConfig", "must.api.demo:quickstart",
        next="must adapt PHOTOS --classes FILE --output work",
    ),
    "is-anything-new": Stage(pod=Pod("must-shard", 1, "must_components.cluster:tell_news", supervised=False)),
    "summary": Stage(
        pod=Pod(
            "must-shard", 4, "must_components.cluster:summarize_run", writes={"run_summary": "Markdown"},
            supervised=False, retried=False,
        ),
    ),
}  # fmt: skip

COMMANDS: Final = {name: stage for name, stage in STAGES.items() if stage.parameters}
"""The library's stages: the commands `must NAME`, and the functions `must.NAME`."""
COMPONENTS: Final = {name: stage.pod for name, stage in STAGES.items() if stage.pod}
"""The components of the pipelines."""
PODS: Final = {name: pod for name, pod in COMPONENTS.items() if not pod.of}
"""The stages of the pipelines: the names in cluster.yaml."""
ERRORS: Final = ("MustError", "TransientError", "UserError")  # classes at `must`, of base/errors
NOT_STAGES: Final = {"load": "must.api.model:load"}  # functions at `must` that are not stages
