"""The origin of an adapted model: training and selection write it into the bundle.

In the bundle it is the JSON that `to_dict` makes and `of_dict` reads; the bundle's `format` is the version of both.
Unknown fields of earlier versions are kept in `more`, so that a bundle that is written again loses nothing.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from must.base.errors import UserError
from must.base.records import record_of
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
    """The check without labels (must/method/select/check.py). Shares are from 0 to 1."""

    images: int
    agreement_before: float
    agreement_after: float
    warnings: list[str]
    error: float = 0.0  # standard error of the agreement's change
    confidence_before: float = 0.0
    confidence_after: float = 0.0
    changed: float = 0.0  # share of the images whose class is not the zero-shot class
    dead_classes: list[str] = field(default_factory=list)  # predicted by the zero-shot model and not by the adapted one


@dataclass(frozen=True)
class Selection:
    """How much of an adaptation is kept, what decided it, a check without labels, accuracies by answers or labels."""

    alpha: float = 1.0  # position between the zero-shot weights (0) and the adapted ones (1)
    by: str = ""
    check: CheckResult | None = None
    measured: AccuracyEstimate | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_dict(cls, values: Any) -> Self | None:
        """None: nothing that this version can read."""
        if not isinstance(values, dict):
            return None
        try:
            selection = record_of(cls, {name: value for name, value in values.items() if name != "more"})
        except ValueError:
            return None
        return replace(selection, more=unknown(cls, values)) if 0 <= selection.alpha <= 1 else None

    def to_dict(self) -> dict[str, Any]:
        known = {name: value for name, value in asdict(self).items() if name != "more"}
        return {name: value for name, value in known.items() if value not in (None, "")} | self.more


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
    more: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self != type(self)()

    @classmethod
    def of_dict(cls, values: Any) -> Self:
        """A selection that cannot be read is left out. Raises UserError: another value has a wrong type."""
        if not isinstance(values, dict):
            raise UserError("provenance has a wrong type")
        plain = {name: value for name, value in values.items() if name not in ("selection", "more")}
        selection = Selection.of_dict(values.get("selection"))
        return replace(record_of(cls, plain), selection=selection, more=unknown(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without what is not known."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        nested = {name: known[name].to_dict() for name in ("summary", "selection") if known[name] is not None}
        return {name: value for name, value in (known | nested).items() if value not in (None, "", [], {})} | self.more


def unknown(kind: type[Selection] | type[Provenance], values: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name not in names}
