"""metrics.json: what `must evaluate` measured, as a dataclass, with the functions that write and read the file.

No torch: gate, registry, cards and pipeline read it. Accuracies are fractions, 0..1; an interval is [low, high], 95%.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record, require
from must.base.storage import read_json
from must.base.text import NONE_OF_THESE, brief, encoded, uncell
from must.config.work import COPIES_FILE, PREDICTIONS_FILE, REFINED_FILE
from must.method.answers.estimate import Abstention
from must.method.model.description import CheckResult, Selection

METRICS_FORMAT = 1  # of the file
JSON_CONTROLS = {code: f"\\u{code:04x}" for code in range(127, 160)}  # json.dumps leaves these unescaped
Interval = tuple[float, float]


@dataclass(frozen=True)
class Accuracy:
    """One model on the labelled images."""

    top1: float
    top5: float
    mean_per_class: float
    nll: float  # nats
    ece: float
    confidence: float
    intervals: dict[str, Interval] = field(default_factory=dict)  # by the names above
    reliability: list[dict[str, float]] = field(default_factory=list)  # see metrics.reliability

    @property
    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


@dataclass(frozen=True)
class Paired:
    """Counts of labelled images by which models are right: the baseline, the model, both, none; McNemar's p."""

    fixed: int
    broken: int
    both_right: int
    both_wrong: int
    mcnemar_p: float


@dataclass(frozen=True)
class ModelFigures:
    """One model on all images, without labels: see metrics.label_free."""

    confidence: float
    histogram: list[int]
    effective_classes: float


@dataclass(frozen=True)
class Compared:
    """Two models on all images, without labels: see metrics.compare."""

    agreement: float
    vanished: list[int]
    dominant: list[int]
    check: CheckResult | None = None


@dataclass(frozen=True)
class LabelFree:
    adapted: ModelFigures
    baseline: ModelFigures | None = None
    compared: Compared | None = None


@dataclass(frozen=True)
class ModelRecord:
    bundle: str = ""
    backbone: str = ""
    pretrained: str = ""
    logit_factor: float = 0.0
    must_version: str = ""
    weights_sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def selection(self) -> Selection | None:
        return Selection.of_dict(self.provenance.get("selection"))


@dataclass(frozen=True)
class Data:
    shards: str = ""
    split: str = ""
    index_sha256: str = ""
    index_revision: int = 0
    splits: dict[str, Any] = field(default_factory=dict)
    rejected: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Metrics:
    """Without labels `adapted` and `paired` are None and the tables empty. Without a baseline `baseline` is None."""

    images: int
    labelled: int
    skipped: int
    classes: list[str]
    label_free: LabelFree
    adapted: Accuracy | None = None
    baseline: Accuracy | None = None
    tower: Accuracy | None = None  # the model without its memory; None if it has none
    similarity: float | None = None  # mean of the images', to those that the model remembers
    answered: int = 0  # labelled images that measure nothing, as people's answers about them are in the model
    intervals: dict[str, Interval] = field(default_factory=dict)  # of the differences, adapted - baseline
    paired: Paired | None = None
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model: pairs, and the matrix or None
    bootstrap_replicates: int = 0
    abstention: Abstention | None = None
    baseline_name: str = "zero-shot"
    model: ModelRecord = field(default_factory=ModelRecord)
    data: Data = field(default_factory=Data)
    refined: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    must_version: str = ""
    format: int = METRICS_FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        content = json.loads(json.dumps(asdict(self), allow_nan=False, default=lambda value: value.item()))  # numpy's
        return content | {"adapted": content["adapted"] or {}}


def parse_metrics(content: dict[str, Any]) -> Metrics:
    """Raises UserError: `content` is not from `must evaluate`; the message names the value."""
    return make_record(Metrics, content | {"adapted": content.get("adapted") or None})


def write_metrics(uri: str, metrics: Metrics) -> None:
    text = json.dumps(metrics.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_bytes(uri, encoded(text.translate(JSON_CONTROLS)))


def read_metrics(uri: str, flag: str = "--metrics") -> Metrics:
    """Raises UserError: no such file, or it is not from `must evaluate`, or from a later version."""
    content = storage.read_json(uri, flag)
    if content.get("format", METRICS_FORMAT) != METRICS_FORMAT:
        raise UserError(f"{flag} {uri}: is of another version of must (format {brief(content['format'])})")
    try:
        return parse_metrics(content)
    except UserError as error:
        raise UserError(f"{flag} {uri}: is not what `must evaluate` writes ({error}); evaluate again") from None


PAIRS_LISTED = 10  # pairs of classes


@dataclass(frozen=True)
class RefinedLabels:
    """`changed`: image -> (zero-shot class, refined class), of the images for which they differ."""

    folder: str
    shards: str
    index_sha256: str
    split: str
    images: int
    answers: int
    weights_sha256: str  # of the adapted model; "" without one
    changed: dict[str, tuple[str, str]]
    accepted: str = ""  # what can be accepted without review; "" without answers drawn at random
    classes: list[dict[str, Any]] = field(default_factory=list)  # rows of `describe_classes`
    misfits: list[dict[str, Any]] = field(default_factory=list)  # as of names.Finding.to_dict
    unusual: list[dict[str, Any]] = field(default_factory=list)  # image, similarity, samples; the least similar first
    copies: bytes = b""  # copies.csv

    @classmethod
    def read(cls, folder: str) -> Self:
        """Raises ValueError: the folder is not from `must refine`."""
        summary = read_json(storage.join(folder, REFINED_FILE), "--refined")
        predictions = storage.join(folder, PREDICTIONS_FILE)
        require(storage.exists(predictions), f"--refined {folder}: no {PREDICTIONS_FILE} there")
        copies, changed, images = storage.join(folder, COPIES_FILE), dict[str, tuple[str, str]](), 0
        try:
            for row in csv.DictReader(io.StringIO(storage.read_bytes(predictions).decode(), newline="")):
                images += 1
                if row["class"] != row["zero_shot"]:
                    changed[uncell(row["image"])] = uncell(row["zero_shot"]), uncell(row["class"]) or NONE_OF_THESE
            config = summary["config"]
            return cls(
                folder, config["shards"], summary["index_sha256"], config["split"], images, summary["answers"],
                summary["weights_sha256"], changed, (summary.get("accepted") or {}).get("text", ""),
                summary.get("classes", []), summary.get("misfits", []),
                summary.get("unusual", []), storage.read_bytes(copies) if storage.exists(copies) else b"",
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"--refined {folder}: is not what `must refine` of this version writes ({type(error).__name__}); "
                "run it again"
            ) from None

    def count_copies(self) -> tuple[int, int]:
        """(images that have copies or near copies, groups of them)."""
        groups = [line.partition(b",")[0] for line in self.copies.splitlines()[1:]]
        return len(groups), len({*groups})

    def to_dict(self) -> dict[str, Any]:
        """The value of `refined` in metrics.json."""
        pairs = Counter(self.changed.values()).most_common(PAIRS_LISTED)
        values = {name: getattr(self, name) for name in ("folder", "split", "images", "answers", "accepted")}
        changes = [{"zero_shot": old, "refined": new, "images": count} for (old, new), count in pairs]
        return values | {"changed": len(self.changed), "changes": changes}
