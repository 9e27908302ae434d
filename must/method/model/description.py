"""model.json, the description of an adapted model: all but its weights. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.files import DESCRIPTION_FILE, NEXT_DESCRIPTION_FILE, WEIGHTS_FILE
from must.base.parameters import make_record, require
from must.base.text import brief
from must.data.image.preprocess import Preprocess
from must.method.model.provenance import Provenance, RunSummary

BUNDLE_FORMAT = 1
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
LARGEST_LOGIT_FACTOR = 1e30  # on the cosine: above it, float32 probabilities overflow


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
    """Raises ValueError: no bundle there, a damaged one, or one of another format."""
    complete_save(folder)
    uri = storage.join(folder, DESCRIPTION_FILE)
    require(storage.exists(uri), f"--model {folder}: no {DESCRIPTION_FILE} there; a bundle is what `must train` writes")
    parsed = storage.read_object(uri, checked, UserError(f"{uri}: is damaged"))
    if not isinstance(parsed, Description):
        raise UserError(
            f"--model {folder}: its format is {brief(parsed)}, and must {__version__} reads format {BUNDLE_FORMAT}; "
            "use the version of must that wrote it, or a newer one"
        )
    return parsed


def complete_save(folder: str) -> None:
    """Writes model.json if `save_bundle` was killed after it had written the weights."""
    following, weights = (storage.join(folder, name) for name in (NEXT_DESCRIPTION_FILE, WEIGHTS_FILE))
    if not storage.exists(following) or not storage.exists(weights):
        return
    data = storage.read_bytes(following)
    sha256 = (storage.object_or_none(data, dict) or {}).get("weights_sha256")
    if sha256 == hashlib.sha256(storage.read_bytes(weights)).hexdigest():
        with suppress(OSError):  # a folder that cannot be written to
            storage.write_bytes(storage.join(folder, DESCRIPTION_FILE), data)
            storage.delete(following)


def checked(values: dict[str, Any]) -> Description | int | float:
    """The description in a bundle's file, or the number of its format if that is another one."""
    if (number := values["format"]) != BUNDLE_FORMAT:
        require(isinstance(number, int | float), "a value of another kind")
        return number
    provenance = Provenance.of_dict(values.get("provenance", {}))
    description = replace(make_record(Description, values | {"provenance": {}}), provenance=provenance)
    require(0 < description.logit_factor <= LARGEST_LOGIT_FACTOR, "a factor out of range")
    require(re.fullmatch("[0-9a-f]{64}", description.weights_sha256) is not None, "no sha256 of the weights")
    return description


def summary_at(folder: str) -> RunSummary:
    """The summary of the training run of a bundle. Raises ValueError: no bundle, or one without a summary."""
    summary = load_description(folder).provenance.summary
    if summary is None:
        raise UserError(f"{storage.join(folder, DESCRIPTION_FILE)}: has no summary of a training")
    return summary


def check_weights(uri: str) -> None:
    """Checks without torch. Raises ValueError: not a safetensors file, or its size does not match its header."""
    require(storage.exists(uri), f"{uri}: is missing")
    size = min(int.from_bytes(storage.read_bytes(uri, 0, 8), "little"), LARGEST_HEADER)
    damaged = UserError(f"{uri}: is damaged or no weights of a model")

    def end(header: dict[str, Any]) -> int:
        return max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")

    if storage.size(uri) != 8 + size + storage.parse_object(storage.read_bytes(uri, 8, size), end, damaged):
        raise damaged


def require_weights(uri: str, description: Description, sha256: str) -> None:
    """Raises UserError: the weights with `sha256` at `uri` are not those that model.json describes."""
    require(
        sha256 == description.weights_sha256,
        f"{uri}: is damaged or of another model than the {DESCRIPTION_FILE} beside it; copy both files again",
    )


def require_same_model(label: str, weights_sha256: str, description: Description, remedy: str) -> None:
    """Raises UserError, which begins with `label`: what was made with the weights `weights_sha256` does not belong to
    the bundle of `description`. `remedy`: the command that makes it of this bundle."""
    require(
        weights_sha256 == description.weights_sha256,
        f"{label}: was made of another model (weights {brief(weights_sha256)[:14]}, of this bundle "
        f"{description.weights_sha256[:12]}); {remedy}",
    )


def require_classes(label: str, classes: list[str], others: list[str]) -> None:
    """Raises UserError, which begins with `label`: the `others` there are not the `classes` of the model."""
    if classes != others:
        missing = [name for name in classes if name not in others] or [name for name in others if name not in classes]
        difference = f"e.g. '{missing[0]}' is in one only" if missing else "their order differs"
        raise UserError(
            f"{label}: has other classes ({len(others)}) than the model ({len(classes)}; {difference}); take the "
            "classifier file that the model was trained with"
        )


def get_preprocess(description: Description) -> Preprocess:
    return Preprocess.from_dict(description.preprocess)
