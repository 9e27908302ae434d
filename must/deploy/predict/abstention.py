"""The threshold below which no class is named: where it is kept, and how it is read.

`must evaluate` calibrates it (must/evaluation/abstention.py), `must export --metrics` puts it into the ONNX file's
metadata under `abstention`, and whatever classifies with that file may ask for it by a threshold of -1.
"""

from collections.abc import Mapping
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require

METADATA = "abstention"
STORED = -1.0  # "the threshold in the model"


def stored_threshold(metadata: Mapping[str, str], where: str) -> float | None:
    """The threshold in an ONNX file's metadata, None if there is none. Raises ValueError: it is damaged."""
    if METADATA not in metadata:
        return None

    def checked(content: dict[str, Any]) -> float:
        value = content["threshold"]
        require(type(value) in (int, float) and 0 <= value <= 1, "no probability")
        return float(value)

    damaged = UserError(f"{where}: the threshold in its metadata is damaged")
    return storage.parse_object(metadata[METADATA], checked, damaged)


def threshold(asked: float, metadata: Mapping[str, str], where: str) -> float:
    """What `asked` means for this file: itself, or for -1 the file's own. Raises ValueError: it has none."""
    if asked != STORED:
        return asked
    stored = stored_threshold(metadata, where)
    if stored is None:
        raise UserError(
            f"--abstain -1: {where} has no threshold of its own: none could be promised, or it was exported without "
            "the --metrics of `must evaluate`; give one as a number, or 0"
        )
    return stored
