"""The origin of an adapted model: training and selection write it into the bundle.

In the bundle it is the JSON that `to_dict` makes and `of_dict` reads; the bundle's `format` is the version of both.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from must.base.errors import UserError
from must.base.parameters import make_record
from must.method.answers.abstention import Abstention
from must.method.answers.estimate import AccuracyEstimate


@dataclass(frozen=True)
class RunSummary:
    """Totals of a training run, interruptions included; None where nothing was trained."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_s: float | None = None
    waiting_for_data: float | None = None  # share of the time
    saving_checkpoints: float | None = None  # share of the time
    skipped_steps: int = 0  # their gradients were not finite
    replaced_samples: int = 0  # that could not be decoded

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CheckResult:
    """The check without labels (must/method/memory/check.py). Shares are from 0 to 1."""

    images: int
    changed: float  # share of the images whose class is not the zero-shot class
    confidence_before: float
    confidence_after: float
    effective_before: float  # exp(entropy) of the predicted classes' shares
    effective_after: float
    dead_classes: list[str] = field(default_factory=list)  # predicted by the zero-shot model and not by the adapted one
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MemoryFacts:
    """What a bundle's memory was made from."""

    images: int  # that it holds
    answers: int = 0
    shared: float = 0.0  # r: how often neighbours share a class, beyond chance


@dataclass(frozen=True)
class Selection:
    """How much of an adaptation is kept, what decided it, a check without labels, what answers measure."""

    alpha: float = 1.0  # position between the zero-shot weights (0) and the adapted ones (1)
    by: str = ""
    check: CheckResult | None = None
    measured: AccuracyEstimate | None = None
    abstention: Abstention | None = None  # by the same answers

    @classmethod
    def of_dict(cls, values: Any) -> Self | None:
        """None: not what `to_dict` makes."""
        try:
            selection = make_record(cls, values)
        except ValueError:
            return None
        return selection if 0 <= selection.alpha <= 1 else None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Provenance:
    """False for a zero-shot model, which has no provenance."""

    index_sha256: str = ""  # of the shards
    index_revision: int | None = None
    config: dict[str, Any] = field(default_factory=dict)  # all parameters of `must train`, by name
    processes: int | None = None
    threads: int | None = None  # of torch in each process, on a CPU
    summary: RunSummary | None = None
    git_revision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of must, Python and packages
    class_shares: list[float] = field(default_factory=list)  # [K], the class balance's target; [] for uniform
    model_folder: str = ""  # the pretrained model's own files
    model_sha256: str = ""
    selection: Selection | None = None
    memory: MemoryFacts | None = None

    def __bool__(self) -> bool:
        return self != type(self)()

    @classmethod
    def of_dict(cls, values: Any) -> Self:
        """A selection that cannot be read is left out. Raises UserError: another value has a wrong type."""
        if not isinstance(values, dict):
            raise UserError("provenance has a wrong type")
        plain = {name: value for name, value in values.items() if name != "selection"}
        return replace(make_record(cls, plain), selection=Selection.of_dict(values.get("selection")))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without what is not known."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        nested = {name: known[name].to_dict() for name in ("summary", "selection") if known[name] is not None}
        nested |= {"memory": asdict(self.memory)} if self.memory else {}
        return {name: value for name, value in (known | nested).items() if value not in (None, "", [], {})}
