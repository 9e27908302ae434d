"""metrics.json: what `must evaluate` measured, as a dataclass, with the functions that write and read the file; and the
table that `must evaluate` prints.

No torch: gate, registry, cards and pipeline read it. Accuracies are fractions, 0..1; an interval is [low, high], 95%.
"""

import csv
import json
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, Self

from must.answers.abstention import Abstention
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record, require
from must.base.storage import read_json
from must.base.text import abbreviate, encode_utf8, make_printable, parse_csv
from must.config.work import COPIES_FILE, PREDICTIONS_FILE, REFINED_FILE
from must.model.description import CheckResult, Selection

METRICS_FORMAT = 1  # of the file
JSON_CONTROLS = {code: f"\\u{code:04x}" for code in range(127, 160)}  # json.dumps leaves these unescaped
Interval = tuple[float, float]
Against = Literal["zero-shot", "baseline", "none"]
"""What a model is compared with: the zero-shot model, another bundle, or nothing."""


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

    @property
    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


@dataclass(frozen=True)
class Paired:
    """Counts of labelled images that only the model has right, and only the baseline."""

    fixed: int
    broken: int


@dataclass(frozen=True)
class ModelFigures:
    """One model on all images, without labels."""

    confidence: float  # mean probability of the predicted class
    histogram: list[int]  # [K], predicted images of each class


@dataclass(frozen=True)
class Compared:
    """Two models on all images, without labels."""

    agreement: float  # share of equal predictions
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
    confusion: dict[str, Any] = field(default_factory=dict)  # of the model: `pairs`, and the `matrix` or None
    bootstrap_replicates: int = 0
    abstention: Abstention | None = None
    baseline_name: Against = "zero-shot"
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
    storage.write_bytes(uri, encode_utf8(text.translate(JSON_CONTROLS)))


def read_metrics(uri: str, flag: str = "--metrics") -> Metrics:
    """Raises UserError: no such file, or it is not from `must evaluate`, or from a later version."""
    content = storage.read_json(uri, flag)
    if content.get("format", METRICS_FORMAT) != METRICS_FORMAT:
        raise UserError(f"{flag} {uri}: is of another version of must (format {abbreviate(content['format'])})")
    try:
        return parse_metrics(content)
    except UserError as error:
        raise UserError(f"{flag} {uri}: is not what `must evaluate` writes ({error}); evaluate again") from None


class LabelRow(NamedTuple):
    """A row of the table of `must refine`, or a model's prediction."""

    image: str
    name: str  # the class
    probability: float
    zero_shot: str
    accepted: bool | None = None  # need not be looked at; None: nothing is promised
    person: bool = False  # a person has named it
    label: str = ""  # the image's own


@dataclass(frozen=True)
class RefinedLabels:
    """The labels that `must refine` gave the unlabeled images."""

    folder: str
    shards: str
    index_sha256: str
    split: str
    answers: int
    weights_sha256: str  # of the adapted model; "" without one
    rows: list[LabelRow]
    accepted: str = ""  # what can be accepted without review; "" without answers drawn at random
    classes: list[dict[str, Any]] = field(default_factory=list)  # rows of `describe_classes`
    copies: bytes = b""  # copies.csv

    @classmethod
    def read(cls, folder: str) -> Self:
        """Raises ValueError: the folder is not from `must refine`."""
        summary = read_json(storage.join(folder, REFINED_FILE), "--refined")
        predictions = storage.join(folder, PREDICTIONS_FILE)
        require(storage.exists(predictions), f"--refined {folder}: no {PREDICTIONS_FILE} there")
        copies = storage.join(folder, COPIES_FILE)
        try:
            rows = [
                LabelRow(
                    row["image"], row["class"], float(row["probability"]), row["zero_shot"],
                    row["accepted"] == "true" if "accepted" in row else None, row["by"] != "model",
                )
                for row in parse_csv(storage.read_bytes(predictions))
            ]  # fmt: skip
            config = summary["config"]
            return cls(
                folder, config["shards"], summary["index_sha256"], config["split"], summary["answers"],
                summary["weights_sha256"], rows, (summary.get("accepted") or {}).get("text", ""),
                summary.get("classes", []), storage.read_bytes(copies) if storage.exists(copies) else b"",
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
        values = {name: getattr(self, name) for name in ("folder", "split", "answers", "accepted")}
        counts = {"images": len(self.rows), "named": sum(row.person for row in self.rows)}
        return values | counts | {"changed": sum(row.name != row.zero_shot for row in self.rows)}


METRIC_ROWS = (
    ("top1", "Top-1", "share of images whose most probable class is the label"),
    ("top5", "Top-5", "share of images whose label is among the five most probable classes"),
    ("mean_per_class", "Mean per class", "mean of the classes' recalls"),
    ("nll", "Negative log-likelihood", "mean of -ln of the label's probability; smaller is better"),
    ("ece", "Calibration error", "expected |accuracy - confidence| over 15 bins; smaller is better"),
)
CLASSES_LISTED = 20
NOTHING = "\N{EN DASH}"
NAME_SHOWN = 32  # characters of a class name


def list_metrics(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, title, meaning) of each figure that labels give; of five classes and fewer top-5 says nothing."""
    return [row for row in METRIC_ROWS if row[0] != "top5" or len(metrics.classes) > 5]


def format_percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def make_text_table(metrics: Metrics) -> str:
    """Aligned text: one row per metric, then one per class (with many classes: those that changed most)."""
    rows: list[tuple[str, ...]] = []
    name, before = metrics.baseline_name, metrics.baseline
    if after := metrics.adapted:
        rows.append((f"{metrics.labelled} labelled images", *([name] if before else []), "adapted", "difference"))
        if metrics.tower:
            title = "top-1 without memory"
            if before and name != "zero-shot":  # another model, whose accuracy without memory is not known
                rows.append((title, NOTHING, format_percent(metrics.tower.top1)))
            else:
                rows.append(make_metric_row(title, before.top1 if before else None, metrics.tower.top1, None))
        for key, title, _ in list_metrics(metrics):
            if key in ("top1", "top5", "mean_per_class"):
                old = getattr(before, key) if before else None
                rows.append(make_metric_row(title.lower(), old, getattr(after, key), metrics.intervals.get(key)))
        rows.append(("",))
        rows.extend(make_class_rows(metrics))
    else:
        baseline, adapted = metrics.label_free.baseline, metrics.label_free.adapted
        rows.append((f"{metrics.images} images, no labels", *([name] if baseline else []), "adapted", "difference"))
        rows.append(
            make_metric_row("mean confidence", baseline.confidence if baseline else None, adapted.confidence, None)
        )
        if compared := metrics.label_free.compared:
            rows.append((f"same class as {name}", "", format_percent(compared.agreement)))
    lines = [align(rows)]
    if (compared := metrics.label_free.compared) and (check := compared.check):
        effective = f"{check.effective_before:.1f} before and {check.effective_after:.1f} after"
        changed = (
            f"check of the model on {check.images:,} images: it changes the class of {format_percent(check.changed)}"
        )
        lines += ["", f"{changed}; effective number of classes {effective}"]
        lines += [f"warning: {make_printable(warning)}" for warning in check.warnings]
    if metrics.abstention and metrics.labelled:
        lines.append(describe_abstention(metrics.abstention))
    return "\n".join(lines)


def describe_abstention(abstention: Abstention) -> str:
    """The threshold below which no class should be named, with its coverage and risk."""
    if abstention.threshold is None:
        return f"abstention: no threshold for {format_percent(abstention.target)} wrong ({abstention.reason})"
    named, wrong, most = map(format_percent, (abstention.coverage, abstention.risk, abstention.bound))
    below = f"abstention (predict --abstain -1) below {abstention.threshold:.6g}"
    return f"{below}: {named} get a class; {wrong} of those wrong, at most {most}"


def make_metric_row(title: str, before: float | None, after: float, interval: Interval | None) -> tuple[str, ...]:
    if before is None:
        return (title, format_percent(after))
    spread = f"  [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else ""
    return (title, format_percent(before), format_percent(after), f"{100 * (after - before):+.1f}{spread}")


def make_class_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    rows = [row for row in metrics.per_class if row["support"]]
    if len(rows) > CLASSES_LISTED:
        rows = sorted(rows, key=lambda row: -abs(row["difference"] or 0))[:CLASSES_LISTED]
    return [
        make_metric_row(make_printable(row["class"], NAME_SHOWN), row["baseline_recall"], row["recall"], None)
        for row in rows
    ]


def align(rows: list[tuple[str, ...]]) -> str:
    """Aligns the first column left, the others right; the fourth, which may have an interval, left."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[i]) if i in (0, 3) else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
