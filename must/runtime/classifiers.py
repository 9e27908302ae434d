"""Classifier files kept at WORK_URI/classifiers by what they were made of, and checked before they are used again.

The orchestrator's own cache cannot do this: it believes in an artifact that a bucket's rules may have deleted since.
"""

import hashlib
import json
import logging
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import CLASSIFIER_FILE
from must.method.model.folder import MODEL_FOLDER_FILE, WEIGHTS_FILE
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

DESCRIPTION = "classifier.json"


def provide(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> dict[str, Any]:
    """Writes the classifier file to `weights`: a copy of the kept one if that is whole, else a new one, which is kept.

    A new one's model goes to WORK_URI/models.

    Args:
        fingerprint: stands for the contents of class file and model.

    Returns:
        sha256, classes (their number), model_folder, and kept: whether it was there.
    """
    work = WorkUri(work_uri)
    place = work.classifier(fingerprint)
    if (found := whole(place)) is not None:
        description, data = found
        storage.write_bytes(weights, data)
        logger.info(f"{description['classes']} classes: the classifier of an earlier run, {place}")
        return {**description, "kept": True}
    file = storage.join(place, CLASSIFIER_FILE)  # `weights` is a path of the orchestrator's, without an ending
    result = call(
        "classifier", classes=classes, model=model, pretrained=pretrained, output=file, model_store=work.models,
    )  # fmt: skip
    data = storage.read_bytes(file)
    storage.write_bytes(weights, data)
    sha256 = hashlib.sha256(data).hexdigest()
    description = {"sha256": sha256, "classes": len(result.classes), "model_folder": result.model_folder}
    storage.write_bytes(storage.join(place, DESCRIPTION), json.dumps(description).encode())  # last: now it counts
    return {**description, "kept": False}


def whole(place: str) -> tuple[dict[str, Any], bytes] | None:
    """The kept file's description and bytes; None if it or its model is not there, or not what the description says."""
    try:
        description = json.loads(storage.read_bytes(storage.join(place, DESCRIPTION)))
        data = storage.read_bytes(storage.join(place, CLASSIFIER_FILE))
        intact = hashlib.sha256(data).hexdigest() == description["sha256"]
        if intact and not is_there(description.get("model_folder", "")):
            logger.info(f"{place}: its model is not there; it is made again")
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        logger.info(f"{place}: is damaged; it is made again")
        return None
    return description, data


def is_there(folder: str) -> bool:
    """Whether a classifier's model is where it was written."""
    files = (MODEL_FOLDER_FILE, WEIGHTS_FILE)
    return bool(folder) and all(storage.exists(storage.join(folder, file)) for file in files)
