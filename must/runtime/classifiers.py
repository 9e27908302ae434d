"""Classifier files kept at WORK_URI/classifiers by what they were made of, and checked before they are used again.

The orchestrator's own cache cannot do this: it believes in an artifact that a bucket's rules may have deleted since.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace

from must.api.stages import call
from must.base import storage
from must.base.files import CLASSIFIER_FILE, MODEL_FOLDER_FILE
from must.method.model.hub import OPEN_CLIP_WEIGHTS
from must.runtime.inputs import inputs_fingerprint
from must.runtime.notes import stage_note
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

CLASSIFIER_JSON = "classifier.json"


@dataclass(frozen=True)
class Made:
    """`classes`: their number; `kept`: whether an earlier run had made it."""

    sha256: str
    classes: int
    model_folder: str
    kept: bool = False


def classifier(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> Made:  # fmt: skip
    """The stage: see `provide`."""
    with stage_note(work_uri, "classifier") as note:
        made = provide(
            work_uri, classes=classes, model=model, pretrained=pretrained, fingerprint=fingerprint, weights=weights
        )
        note.result = f"{made.classes} classes" + (", made by an earlier run" if made.kept else "")
    return made


def provide(work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str) -> Made:
    """Writes the classifier file to `weights`: a copy of the kept one if that is whole, else a new one, which is kept.

    A new one's model goes to WORK_URI/models.

    Args:
        fingerprint: stands for the contents of class file and model; '' to look at them here.
    """
    work = WorkUri(work_uri)
    place = work.classifier(fingerprint or inputs_fingerprint(classes, model, pretrained))
    if (found := whole(place)) is not None:
        made, data = found
        storage.write_bytes(weights, data)
        logger.info(f"{made.classes} classes: the classifier of an earlier run, {place}")
        return replace(made, kept=True)
    file = storage.join(place, CLASSIFIER_FILE)  # `weights` is a path of the orchestrator's, without an ending
    result = call(
        "classifier", classes=classes, model=model, pretrained=pretrained, output=file, model_store=work.models,
    )  # fmt: skip
    data = storage.read_bytes(file)
    storage.write_bytes(weights, data)
    made = Made(hashlib.sha256(data).hexdigest(), len(result.classes), result.model_folder)
    storage.write_bytes(storage.join(place, CLASSIFIER_JSON), json.dumps(asdict(made)).encode())  # last: now it counts
    return made


def whole(place: str) -> tuple[Made, bytes] | None:
    """The kept file's description and bytes; None if it or its model is not there, or not what the description says."""
    try:
        content = json.loads(storage.read_bytes(storage.join(place, CLASSIFIER_JSON)))
        made = Made(content["sha256"], content["classes"], content.get("model_folder", ""))
        data = storage.read_bytes(storage.join(place, CLASSIFIER_FILE))
        intact = hashlib.sha256(data).hexdigest() == made.sha256
        if intact and not is_there(made.model_folder):
            logger.info(f"{place}: its model is not there; it is made again")
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        logger.info(f"{place}: is damaged; it is made again")
        return None
    return made, data


def is_there(folder: str) -> bool:
    """Whether a classifier's model is where it was written."""
    files = (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS)
    return bool(folder) and all(storage.exists(storage.join(folder, file)) for file in files)
