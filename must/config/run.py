"""The parameters of the pipelines' runs: run.yaml, Kubeflow's page, and what the stage inputs checks."""

from dataclasses import dataclass
from typing import Any

from must.base.parameters import param


@dataclass(kw_only=True)
class SourceParameters:
    """What the stages shard and shard-part take of a run."""

    source: str = param("folder or bucket prefix of unlabeled images, or a manifest.")
    test_source: str = param("labelled images for reporting, which become the split 'test'.", "")
    labels: str = param("where labels are: folder, csv or none.", "none")
    split: str = param("shares of `source` by split, such as train=0.9,test=0.1.", "train=1")
    append: bool = param("add the source's new images to the shards that are there.", False)
    shard_settings: dict[str, Any] = param(
        'other parameters of `must shard` by name, such as {"max_rejected": 0.05, "workers": 4}.', factory=dict
    )


@dataclass(kw_only=True)
class RunParameters(SourceParameters):
    """Images and class names in, an adapted, evaluated and promoted ONNX model out."""

    classes: str = param("YAML file with class names and prompt templates, or imagenet.")
    work_uri: str = param("where shards and checkpoints go: gs://bucket/prefix or a path that all stages see.")
    registry_uri: str = param("where promoted models live; work_uri/registry if empty.", "")
    model_name: str = param("the model's name in the registry: small letters, digits and -.", "model")
    model: str = param(
        "open_clip model name with its pretrained tag, such as ViT-B-16/openai; or a model folder.",
        "ViT-B-16/datacomp_xl_s13b_b90k",
    )
    pretrained: str = param("the tag, if `model` has none, or a checkpoint file; nothing for a model folder.", "")
    evaluate_split: str = param("the split to evaluate on; empty: test, or train if there is no test.", "")
    preset: str = param(
        "empty or auto: settings from the data's size and the model; else the published ones of a data set,\n"
        "such as imagenet.",
        "",
    )
    epochs: int = param("passes over the images; 0 leaves it to settings and preset.", 0)
    settings: dict[str, Any] = param(
        'parameters of `must train` by name, such as {"lr": 2e-5}; they win over the preset.', factory=dict
    )
    answers: str = param(
        "answers.jsonl of `must review` about these images, which correct labels and teach the model;\n"
        "read again by each run of a schedule.",
        "",
    )
    precision: str = param("of the ONNX model: fp32 or int8.", "fp32")
    embeddings: bool = param("the ONNX model gives images' embeddings too.", False)
    gate: str = param(
        "what a model must pass to be promoted: auto, labels if there are enough, else answers, else that it\n"
        "did not collapse; labelled, its gain over the champion on evaluate_split; label-free; or none.",
        "auto",
    )
    gate_settings: dict[str, Any] = param(
        'parameters of `must gate` by name, such as {"min_gain": 0.01}.', factory=dict
    )
    only_new: bool = param("end early when nothing is new since a model was last promoted or stopped.", False)


@dataclass(kw_only=True)
class LabelRunParameters:
    """Images and a model in, a table of labels in parts out."""

    source: str = param("folder or bucket prefix of images, an archive, shards, tables or a list.")
    output: str = param("the table, FILE.csv or FILE.jsonl; its parts are in the folder FILE.csv.parts.")
    work_uri: str = param(
        "where the run's notes go, and the registry is: gs://bucket/prefix or a path that all stages see."
    )
    registry_uri: str = param("where promoted models live; work_uri/registry if empty.", "")
    model_name: str = param("the model's name in the registry, whose champion labels.", "model")
    model: str = param("another model: a folder of an ONNX file or a bundle.", "")
    only_new: bool = param(
        "rows of other models stay, and only new images are labelled; else those are labelled again.", False
    )
    least_similarity: float = param("images below it are counted in the summary.", 0.5)
    settings: dict[str, Any] = param(
        'parameters of `must predict` by name, such as {"abstain": -1, "top_k": 3}.', factory=dict
    )
