"""model.json, the description of an adapted model: all but its weights, with its origin. Needs no torch."""

import hashlib
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from must import __version__
from must.answers.abstention import Abstention
from must.answers.accuracy import AccuracyEstimate
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record, require
from must.base.text import abbreviate, make_printable
from must.config.work import DESCRIPTION_FILE, NEXT_DESCRIPTION_FILE, WEIGHTS_FILE
from must.data.image.preprocess import Levels, Preprocess, set_levels

BUNDLE_FORMAT = 1
LARGEST_LOGIT_FACTOR = 1e30  # on the cosine: above it, float32 probabilities overflow


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


@dataclass(frozen=True)
class CheckResult:
    """The check without labels (must/memory/predictions.py). Shares are from 0 to 1."""

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
    none: float = 0.0  # of none of the classes, before corrections and votes; 0: it knows the classes only
    none_margin: float = 0.0  # by which the logarithm of its probability for a new image must exceed those of classes


@dataclass(frozen=True)
class Selection:
    """How much of an adaptation is kept, a check without labels, what answers measure."""

    alpha: float = 1.0  # position between the zero-shot weights (0) and the adapted ones (1)
    check: CheckResult | None = None
    measured: AccuracyEstimate | None = None
    abstention: Abstention | None = None  # by the same answers

    @property
    def decisive(self) -> AccuracyEstimate | None:
        """`measured`, if it is about at least half of the images: else no decision rests on it."""
        images = self.check.images if self.check else 0
        return self.measured if self.measured and 2 * self.measured.unmeasured <= images else None

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without what is not known."""
        values = asdict(self) | ({"selection": self.selection.to_dict()} if self.selection else {})
        return {name: value for name, value in values.items() if value not in (None, "", [], {})}


@dataclass(frozen=True)
class Description:
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu: what open_clip needs to build the tower
    backbone: str
    pretrained: str
    classes: list[str]
    templates: list[str]
    preprocess: dict[str, Any]
    logit_factor: float
    provenance: Provenance = field(default_factory=Provenance)
    must_version: str = __version__
    format: int = BUNDLE_FORMAT
    weights_sha256: str = ""  # of model.safetensors; "" for a bundle that was not written

    def to_dict(self) -> dict[str, Any]:
        """The content of model.json."""
        return vars(self) | {"provenance": self.provenance.to_dict()}


def load_description(folder: str) -> Description:
    complete_save(folder)
    uri = storage.join(folder, DESCRIPTION_FILE)
    require(storage.exists(uri), f"--model {folder}: no {DESCRIPTION_FILE} there; a bundle is what `must train` writes")
    parsed = storage.read_object(uri, check_description, UserError(f"{uri}: is damaged"))
    if not isinstance(parsed, Description):
        raise UserError(
            f"--model {folder}: its format is {abbreviate(parsed)}, and must {__version__} reads format "
            f"{BUNDLE_FORMAT}; use the version of must that wrote it, or a newer one"
        )
    return parsed


def complete_save(folder: str) -> None:
    """Writes model.json if `save_bundle` was killed after it had written the weights."""
    following, weights = (storage.join(folder, name) for name in (NEXT_DESCRIPTION_FILE, WEIGHTS_FILE))
    if not storage.exists(following) or not storage.exists(weights):
        return
    data = storage.read_bytes(following)
    sha256 = (storage.parse_object_or_none(data, dict) or {}).get("weights_sha256")
    if sha256 == hashlib.sha256(storage.read_bytes(weights)).hexdigest():
        with suppress(OSError):  # a folder that cannot be written to
            storage.write_bytes(storage.join(folder, DESCRIPTION_FILE), data)
            storage.delete(following)


def check_description(values: dict[str, Any]) -> Description | int | float:
    """The description in a bundle's file, or the number of its format if that is another one."""
    if (number := values["format"]) != BUNDLE_FORMAT:
        require(isinstance(number, int | float), "a value of another kind")
        return number
    description = make_record(Description, values)
    require(0 < description.logit_factor <= LARGEST_LOGIT_FACTOR, "a factor out of range")
    selection = description.provenance.selection
    require(selection is None or 0 <= selection.alpha <= 1, "an alpha out of range")
    require(re.fullmatch("[0-9a-f]{64}", description.weights_sha256) is not None, "no sha256 of the weights")
    return description


def read_summary(folder: str) -> RunSummary:
    """The summary of the training run of a bundle."""
    summary = load_description(folder).provenance.summary
    if summary is None:
        raise UserError(f"{storage.join(folder, DESCRIPTION_FILE)}: has no summary of a training")
    return summary


def require_weights(uri: str, description: Description, sha256: str) -> None:
    """The weights with `sha256` at `uri` must be those that model.json describes."""
    require(
        sha256 == description.weights_sha256,
        f"{uri}: is damaged or of another model than the {DESCRIPTION_FILE} beside it; copy both files again",
    )


def require_same_model(label: str, weights_sha256: str, description: Description, command: str) -> None:
    """What was made with the weights `weights_sha256` must belong to the bundle of `description`. `command` makes it of
    this bundle."""
    require(
        weights_sha256 == description.weights_sha256,
        f"{label}: was made of another model (weights {make_printable(weights_sha256[:12])}, of this bundle "
        f"{description.weights_sha256[:12]}); run `{command}` again",
    )


def require_classes(label: str, classes: list[str], others: list[str]) -> None:
    """The `others` there must be the `classes` of the model."""
    if classes != others:
        missing = [name for name in classes if name not in others] or [name for name in others if name not in classes]
        difference = f"e.g. '{missing[0]}' is in one only" if missing else "their order differs"
        raise UserError(
            f"{label}: has other classes ({len(others)}) than the model ({len(classes)}; {difference}); take the "
            "classifier file that the model was trained with"
        )


def keep_levels(description: Description, levels: Levels) -> Description:
    """With the levels of the images that the model is adapted to, unless it has some."""
    if not levels:
        return description
    return replace(description, preprocess=set_levels(get_preprocess(description), levels).to_dict())


def get_preprocess(description: Description) -> Preprocess:
    return Preprocess.from_dict(description.preprocess)
