"""What the functions at `must` return: the paths that were written to, and the main numbers.

Paths are strings, as they may be URIs of a bucket; shares and accuracies are fractions, 0..1.
"""

import html
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from must import config as configs
from must.base import storage
from must.base.files import ONNX_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.deploy.predict.writer import Prediction, to_frame
from must.deploy.promote.registry import Latest
from must.evaluation.gate import Decision
from must.evaluation.result import Metrics
from must.method.model.description import RunSummary, load_description


@dataclass(frozen=True)
class Shards:
    """`splits`: images of each split; `rejected`: files that cannot be decoded; `sha256`: of index.json. After one
    `part`, `splits` and `sha256` are empty while other parts are not done yet."""

    output: str
    splits: dict[str, int]
    rejected: int
    duplicates: int
    revision: int
    sha256: str

    @classmethod
    def from_output(cls, config: configs.ShardConfig, index: Any) -> Self:
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
    def from_output(cls, config: configs.ClassifierConfig, classifier: Any) -> Self:
        return cls(config.output, classifier.classes, classifier.weights.shape[0], classifier.model_folder)


@dataclass(frozen=True)
class Planned:
    """`seconds` that training would take on this machine; `plan`: memory and the other measurements."""

    steps: int
    seconds: float
    images_per_s: float
    plan: dict[str, Any] = field(repr=False)

    @classmethod
    def from_output(cls, _config: configs.PlanConfig, content: dict[str, Any]) -> Self:
        return cls(content["steps"], content["seconds"], content["images_per_s"], content)


@dataclass(frozen=True)
class Trained:
    """`output`: the bundle; `alpha`: position between the zero-shot weights (0) and the trained ones (1);
    `summary`: speed and problems of the run."""

    output: str
    steps: int
    images: int
    seconds: float
    alpha: float
    summary: dict[str, Any] = field(repr=False)

    @classmethod
    def from_output(cls, config: configs.TrainConfig, summary: RunSummary) -> Self:
        selection = load_description(config.output).provenance.selection
        alpha = selection.alpha if selection else 1.0
        return cls(config.output, summary.steps, summary.images, summary.seconds, alpha, asdict(summary))


@dataclass(frozen=True)
class Refined:
    """`predictions`: the table of labels; `changed`: share of the images whose label is not the zero-shot one."""

    output: str
    predictions: str
    images: int
    changed: float
    summary: dict[str, Any] = field(repr=False)

    @classmethod
    def from_output(cls, config: configs.RefineConfig, summary: dict[str, Any]) -> Self:
        if config.classes:
            return cls("", "", summary["images"], summary["changed"] / summary["images"], summary)
        predictions = storage.join(config.output, PREDICTIONS_FILE)
        return cls(config.output, predictions, summary["images"], summary["changed"], summary)


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
    def from_output(cls, config: configs.EvaluateConfig, metrics: Metrics) -> Self:
        top1, baseline_top1 = (accuracy.top1 if accuracy else None for accuracy in (metrics.adapted, metrics.baseline))
        report = storage.join(config.output, REPORT_FILE)
        return cls(config.output, report, metrics.images, top1, baseline_top1, metrics.to_dict())

    def _repr_html_(self) -> str:
        return iframe(storage.read_bytes(self.report).decode())


@dataclass(frozen=True)
class Exported:
    """`model`: the ONNX file, or the folder for open_clip; it was compared with PyTorch on `images` images;
    `largest_difference`: of a probability; `result`: all comparisons."""

    output: str
    model: str
    images: int
    largest_difference: float
    result: dict[str, Any] = field(repr=False)

    @classmethod
    def from_output(cls, config: configs.ExportConfig, result: dict[str, Any]) -> Self:
        onnx = config.to == "onnx"
        model = storage.join(config.output, ONNX_FILE) if onnx else config.output
        return cls(config.output, model, result["check"]["images"], result["check"]["largest_difference"], result)


@dataclass(frozen=True)
class Predicted:
    """`predictions`: one for each readable image, with its most probable classes, best first."""

    predictions: list[Prediction] = field(repr=False)
    images: int
    unreadable: int

    @classmethod
    def from_output(cls, _config: configs.PredictConfig, output: tuple[list[Prediction], dict[str, int]]) -> Self:
        predictions, counts = output
        return cls(predictions, counts["images"], counts["unreadable"])

    def to_frame(self) -> Any:
        """The predictions as a pandas DataFrame, with the columns of the CSV file."""
        return to_frame(self.predictions)


@dataclass(frozen=True)
class Demo:
    """Paths of the bundled example: `images` without labels, labelled `test_images`, `classes` and `model`."""

    output: str
    images: str
    test_images: str
    classes: str
    model: str

    @classmethod
    def from_output(cls, config: configs.DemoConfig, _folder: Any) -> Self:
        names = ("images/unlabeled", "images/test", "classes.yaml", "model")
        return cls(config.output, *(storage.join(config.output, name) for name in names))


RESULTS: dict[str, type] = {
    "shard": Shards, "classifier": Classifier, "plan": Planned, "train": Trained, "refine": Refined,
    "evaluate": Evaluated, "export": Exported, "predict": Predicted, "demo": Demo,
    "gate": Decision, "promote": Latest,  # as the stages return them
}  # fmt: skip


def iframe(page: str) -> str:
    """An HTML page inside a notebook: an iframe."""
    return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="700" frameborder="0"></iframe>'
