"""Where an adapted model comes from: what training and selecting write into its bundle, and others read.

In the bundle it is the JSON that `to_dict` makes and `of_dict` reads; the bundle's `format` is the version of both.
What earlier versions wrote besides is kept as it is, in `more`, so that a bundle that is written again loses nothing.
"""

from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_type_hints

from must.base.parameters import convert
from must.method.answers.estimate import Measured

__all__ = ["Provenance", "RunSummary", "Selection"]


@dataclass(frozen=True)
class RunSummary:
    """Of a whole run of training, its interruptions included; None where nothing was trained."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_s: float | None = None
    waiting_for_data: float | None = None  # share of the time
    saving_checkpoints: float | None = None  # share of the time
    skipped_steps: int = 0  # their gradients were not finite
    replaced_samples: int = 0  # that could not be decoded

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Self:
        """Raises ValueError: a value of another kind."""
        return cls(**typed(cls, values))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """How much of an adaptation is kept, what decided it, a check without labels, accuracies by answers or labels."""

    alpha: float | None = None  # share of the way from zero-shot's weights (0) to the adapted ones (1)
    by: str = ""
    check: dict[str, Any] | None = None  # `must.method.select.check.Check.to_dict`
    measured: Measured | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Self:
        """Raises ValueError: a value of another kind."""
        measured = values.get("measured")
        found = cls(
            **typed(cls, values, "measured"),
            measured=Measured.from_dict(measured) if isinstance(measured, dict) else None,
            more=unknown(cls, values),
        )
        if found.alpha is not None and not 0 <= found.alpha <= 1:
            raise ValueError(f"alpha {found.alpha}")
        return found

    def to_dict(self) -> dict[str, Any]:
        measured = self.measured.to_dict() if self.measured else None
        known = {"alpha": self.alpha, "by": self.by, "check": self.check, "measured": measured}
        return {name: value for name, value in known.items() if value not in (None, "")} | self.more


@dataclass(frozen=True)
class Provenance:
    """False for a zero-shot model, which has none."""

    index_sha256: str = ""  # of the shards
    index_revision: int | None = None
    config: dict[str, Any] = field(default_factory=dict)  # all parameters of `must train`, by name
    processes: int | None = None
    summary: RunSummary | None = None
    git_revision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of must, Python and packages
    class_shares: list[float] = field(default_factory=list)  # [K], what the class balance aimed at; [] for uniform
    model_folder: str = ""  # the pretrained model's own files
    model_sha256: str = ""
    selection: Selection | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self != type(self)()

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Self:
        """A selection that cannot be understood is none.

        Raises:
            ValueError: another value of another kind.
        """
        if not isinstance(values, dict):
            raise ValueError("no mapping")
        summary = values.get("summary")
        try:
            selection = Selection.of_dict(values.get("selection") or {})
        except (ValueError, TypeError, AttributeError):
            selection = Selection()
        return cls(
            **typed(cls, values, "summary", "selection"),
            summary=None if summary is None else RunSummary.of_dict(summary),
            selection=None if selection == Selection() else selection,
            more=unknown(cls, values),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without what is not known."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "more"}
        nested = {name: known[name].to_dict() for name in ("summary", "selection") if known[name] is not None}
        return {name: value for name, value in (known | nested).items() if value not in (None, "", [], {})} | self.more


def typed(kind: type, values: dict[str, Any], *apart: str) -> dict[str, Any]:
    """Those of `values` that `kind` has fields for, but for `more`, those `apart` and None. Raises ValueError."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in ("more", *apart)}
    present = {name: hint for name, hint in hints.items() if values.get(name) is not None}
    return {name: convert(values[name], without_none(hint), name) for name, hint in present.items()}


def without_none(hint: Any) -> Any:
    """T of T | None."""
    return get_args(hint)[0] if isinstance(hint, UnionType) else hint


def unknown(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in values.items() if name not in names}
