"""What the functions at `must` return: the places that were written to, and the main numbers.

Places are text, as they may be a bucket's URI; shares and accuracies are fractions, 0..1.
"""

import html
from dataclasses import dataclass, field
from typing import Any, Self

from must import config as configs
from must.base import storage
from must.base.files import ONNX_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.deploy.labels.exchange import Exchanged
from must.deploy.labels.sort import Outcome
from must.deploy.predict.writer import Prediction
from must.deploy.promote.registry import Latest
from must.evaluation.gate import Decision
from must.evaluation.result import Metrics
from must.method.model.bundle import load_description
from must.method.model.provenance import RunSummary


@dataclass(frozen=True)
class Shards:
    """`splits`: images of each split; `rejected`: files that are no whole images; `sha256`: of index.json, "" after a
    `part` while others still have to do theirs; then there are no images yet."""

    output: str
    splits: dict[str, int]
    rejected: int
    duplicates: int
    revision: int
    sha256: str

    @classmethod
    def of(cls, config: configs.ShardConfig, index: Any) -> Self:
        if index is None:
            return cls(config.output, {}, 0, 0, 0, "")
        counts = {name: split["samples"] for name, split in index.splits.items()}
        return cls(config.output, counts, index.rejected, index.duplicates, index.revision, index.sha256)


@dataclass(frozen=True)
class Classifier:
    """`model_folder`: the CLIP model's own files, which later stages read."""

    output: str
    classes: tuple[str, ...]
    dimensions: int
    model_folder: str

    @classmethod
    def of(cls, config: configs.ClassifierConfig, made: Any) -> Self:
        return cls(config.output, made.classes, made.weights.shape[0], made.model_folder)


@dataclass(frozen=True)
class Planned:
    """`seconds` that training would take here; `plan`: memory and what else was measured."""

    steps: int
    seconds: float
    images_per_s: float
    plan: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, _config: configs.PlanConfig, found: dict[str, Any]) -> Self:
        return cls(found["steps"], found["seconds"], found["images_per_s"], found)


@dataclass(frozen=True)
class Trained:
    """`output`: the bundle; `kept`: share of the way from zero-shot's weights to the trained ones (`--alpha`);
    `summary`: speed and what went wrong on the way."""

    output: str
    steps: int
    images: int
    seconds: float
    kept: float
    summary: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, config: configs.TrainConfig, summary: RunSummary) -> Self:
        selection = load_description(config.output).provenance.selection
        kept = selection.alpha if selection else 1.0
        return cls(config.output, summary.steps, summary.images, summary.seconds, kept, summary.to_dict())


@dataclass(frozen=True)
class Refined:
    """`predictions`: the table of labels; `changed`: share of the images with another label than zero-shot's."""

    output: str
    predictions: str
    images: int
    changed: float
    story: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, config: configs.RefineConfig, story: dict[str, Any]) -> Self:
        place = storage.join(config.output, PREDICTIONS_FILE)
        return cls(config.output, place, story["images"], story["changed"], story)


@dataclass(frozen=True)
class Selected:
    """`kept`: share of the way from zero-shot's weights to the trained ones; `by`: what set it; `warnings` of the
    check."""

    output: str
    kept: float
    by: str
    warnings: list[str]

    @classmethod
    def of(cls, config: configs.SelectConfig, choice: Any) -> Self:
        return cls(config.output, choice.alpha, choice.by, choice.check.warnings)


@dataclass(frozen=True)
class Evaluated:
    """`top1` and `baseline_top1`: None without labels, and without a baseline. A notebook shows the report."""

    output: str
    report: str
    images: int
    top1: float | None
    baseline_top1: float | None
    metrics: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, config: configs.EvaluateConfig, metrics: Metrics) -> Self:
        top1, before = (found.top1 if found else None for found in (metrics.adapted, metrics.baseline))
        report = storage.join(config.output, REPORT_FILE)
        return cls(config.output, report, metrics.images, top1, before, metrics.to_dict())

    def _repr_html_(self) -> str:
        return framed(storage.read_bytes(self.report).decode())


@dataclass(frozen=True)
class Exported:
    """`model`: the ONNX file, or the folder for another library; it was compared with PyTorch on `images` images, and
    `largest_difference` is that of a probability; `result`: all that was compared."""

    output: str
    model: str
    images: int
    largest_difference: float
    result: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, config: configs.ExportConfig, result: dict[str, Any]) -> Self:
        onnx = config.to == "onnx"
        model = storage.join(config.output, ONNX_FILE) if onnx else config.output
        return cls(config.output, model, result["check"]["images"], result["check"]["largest_difference"], result)


@dataclass(frozen=True)
class Pushed:
    """`url`: the commit's address."""

    repo: str
    url: str

    @classmethod
    def of(cls, config: configs.PushConfig, url: str) -> Self:
        return cls(config.repo, url)


@dataclass(frozen=True)
class Predicted:
    """`predictions`: one an image that could be read, with its most probable classes, best first."""

    predictions: list[Prediction] = field(repr=False)
    images: int
    unreadable: int

    @classmethod
    def of(cls, _config: configs.PredictConfig, found: tuple[list[Prediction], dict[str, int]]) -> Self:
        return cls(found[0], found[1]["images"], found[1]["unreadable"])


@dataclass(frozen=True)
class Demo:
    """Places of the bundled example: `images` without labels, labelled `test_images`, `classes` and `model`."""

    output: str
    images: str
    test_images: str
    classes: str
    model: str

    @classmethod
    def of(cls, config: configs.DemoConfig, _folder: Any) -> Self:
        names = ("images/unlabeled", "images/test", "classes.yaml", "model")
        return cls(config.output, *(storage.join(config.output, name) for name in names))


RESULTS: dict[str, type] = {
    "shard": Shards, "classifier": Classifier, "plan": Planned, "train": Trained, "refine": Refined, "select": Selected,
    "evaluate": Evaluated, "export": Exported, "push": Pushed, "predict": Predicted, "demo": Demo,
    "sort": Outcome, "labels": Exchanged, "gate": Decision, "promote": Latest,  # as the stages return them
}  # fmt: skip


def framed(page: str, height: int = 700) -> str:
    """A page of its own inside a notebook's."""
    return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="{height}" frameborder="0"></iframe>'
