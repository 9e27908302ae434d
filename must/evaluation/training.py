"""What the training log that travels in the bundle says: the report's curves, and how settled the training was."""

import json
import sys
from typing import Any

from must.base import storage
from must.method.model.bundle import LOG_FILE

LAST_SHARE = 0.1
"""Share of the training, at its end, over which `settled` takes means."""


def training_log(bundle: str) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl beside the bundle's weights; none where there is no log.

    Lines that a kill cut off, and lines without a step, are left out.
    """
    uri = storage.join(bundle, LOG_FILE)
    if not storage.exists(uri):
        return []
    lines = []
    for text in storage.read_bytes(uri).decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and is_number(line.get("step")):
            lines.append(line)
    return lines


def stability(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Means over the last tenth of the training, on images of the training split; no label is involved.

    - stability: share of images to which student and teacher give the same class.
    - agreement: share of images to which the teacher gives the zero-shot class.
    - log_lines: from how many log lines.

    None without such lines (a log of an earlier version, or a bundle that was not trained).
    """
    lines = [line for line in lines if is_number(line.get("stability"))]
    if not lines:
        return None
    tail = [line for line in lines if line["step"] >= (1 - LAST_SHARE) * lines[-1]["step"]]
    return {
        "stability": sum(line["stability"] for line in tail) / len(tail),
        "agreement": sum(line["agreement"] for line in tail) / len(tail),
        "log_lines": len(tail),
    }


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
