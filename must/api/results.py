"""What the functions at `must` return: the paths that were written to, and the main numbers.

Paths are strings, as they may be URIs of a bucket; shares and accuracies are fractions, 0..1."""

import html
from dataclasses import asdict, dataclass, field
from typing import Any

from must import config as configs
from must.base import storage
from must.base.parameters import StageConfig
from must.config.work import ONNX_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.evaluation.gate import Decision
from must.model.description import load_description
from must.prediction.writer import Prediction, to_frame
from must.registry.promote import Latest


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


@dataclass(frozen=True)
class Classifier:
    """`model_folder`: the CLIP model's own files, which later stages read."""

    output: str
    classes: tuple[str, ...]
    dimensions: int
    model_folder: str


@dataclass(frozen=True)
class Planned:
    """`seconds` that training would take on this machine; `plan`: memory and the other measurements."""

    steps: int
    seconds: float
    images_per_s: float
    plan: dict[str, Any] = field(repr=False)


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


@dataclass(frozen=True)
class Refined:
    """`predictions`: the table of labels; `changed`: share of the images whose label is not the zero-shot one."""

    output: str
    predictions: str
    images: int
    changed: float
    summary: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Evaluated:
    """`top1` and `baseline_top1`: None without labels, and without a baseline. A notebook shows the report."""

    output: str
    report: str
    images: int
    top1: float | None
    baseline_top1: float | None
    metrics: dict[str, Any] = field(repr=False)

    def _repr_html_(self) -> str:
        return make_iframe(storage.read_bytes(self.report).decode())


@dataclass(frozen=True)
class Exported:
    """`model`: the ONNX file, or the folder for open_clip; it was compared with PyTorch on `images` images;
    `largest_difference`: of a probability; `result`: all comparisons."""

    output: str
    model: str
    images: int
    largest_difference: float
    result: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Predicted:
    """`predictions`: one for each readable image, with its most probable classes, best first."""

    predictions: list[Prediction] = field(repr=False)
    images: int
    unreadable: int

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


RESULTS: dict[str, type] = {
    "shard": Shards, "classifier": Classifier, "plan": Planned, "train": Trained, "refine": Refined,
    "evaluate": Evaluated, "export": Exported, "predict": Predicted, "demo": Demo,
    "gate": Decision, "promote": Latest,  # as the stages return them
}  # fmt: skip


def make_result(config: StageConfig, output: Any) -> Any:
    """What the function at `must` returns, from the stage's parameters and what the stage returned."""
    match config:
        case configs.ShardConfig() if output is None:
            return Shards(config.output, {}, 0, 0, 0, "")
        case configs.ShardConfig():
            counts = {name: split["samples"] for name, split in output.splits.items()}
            return Shards(config.output, counts, output.rejected, output.duplicates, output.revision, output.sha256)
        case configs.ClassifierConfig():
            return Classifier(config.output, output.classes, output.weights.shape[0], output.model_folder)
        case configs.PlanConfig():
            return Planned(output["steps"], output["seconds"], output["images_per_s"], output)
        case configs.TrainConfig():
            selection = load_description(config.output).provenance.selection
            alpha = selection.alpha if selection else 1.0
            return Trained(config.output, output.steps, output.images, output.seconds, alpha, asdict(output))
        case configs.RefineConfig():
            predictions = storage.join(config.output, PREDICTIONS_FILE)
            return Refined(config.output, predictions, output["images"], output["changed"], output)
        case configs.EvaluateConfig():
            top1, baseline_top1 = (model.top1 if model else None for model in (output.adapted, output.baseline))
            report = storage.join(config.output, REPORT_FILE)
            return Evaluated(config.output, report, output.images, top1, baseline_top1, output.to_dict())
        case configs.ExportConfig():
            model = storage.join(config.output, ONNX_FILE) if config.to == "onnx" else config.output
            check = output["check"]
            return Exported(config.output, model, check["images"], check["largest_difference"], output)
        case configs.DemoConfig():
            names = ("images/unlabeled", "images/test", "classes.yaml", "model")
            return Demo(config.output, *(storage.join(config.output, name) for name in names))
    return output


def make_iframe(page: str) -> str:
    """An HTML page inside a notebook: an iframe."""
    return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="700" frameborder="0"></iframe>'
