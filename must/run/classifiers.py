"""Classifier files kept at WORK_URI/classifiers by what they were made of, and checked before they are used again.

The orchestrator's own cache cannot do this: it believes in an artifact that a bucket's rules may have deleted since.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from must import storage
from must.run.places import WorkUri
from must.stages import call

FILE, DESCRIPTION = "classifier.safetensors", "classifier.json"


def provide(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> dict[str, Any]:
    """Writes the classifier file to `weights`: a copy of the kept one if that is whole, else a new one, which is kept.

    Args:
        fingerprint: stands for the contents of class file and model.

    Returns:
        sha256, classes (their number) and kept: whether it was there.
    """
    place = WorkUri(work_uri).classifier(fingerprint)
    if (found := whole(place)) is not None:
        description, data = found
        storage.write_bytes(weights, data)
        print(f"{description['classes']} classes: the classifier of an earlier run, {place}")
        return {**description, "kept": True}
    result = call("classifier", classes=classes, model=model, pretrained=pretrained, output=weights)
    data = storage.read_bytes(weights)
    description = {"sha256": hashlib.sha256(data).hexdigest(), "classes": len(result.classes)}
    storage.write_bytes(storage.join(place, FILE), data)
    storage.write_bytes(storage.join(place, DESCRIPTION), json.dumps(description).encode())  # last: now it counts
    return {**description, "kept": False}


def whole(place: str) -> tuple[dict[str, Any], bytes] | None:
    """The kept file's description and bytes; None if it is not there or not what its description says."""
    try:
        description = json.loads(storage.read_bytes(storage.join(place, DESCRIPTION)))
        data = storage.read_bytes(storage.join(place, FILE))
        intact = hashlib.sha256(data).hexdigest() == description["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        print(f"{place}: is damaged; it is made again")
        return None
    return description, data
