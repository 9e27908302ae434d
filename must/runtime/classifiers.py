"""A cache of classifier files at WORK_URI/classifiers by a hash of their inputs. Files are checked before reuse.

The orchestrator's own cache is not enough: it does not notice that a rule of the bucket has deleted an artifact.
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
class ClassifierRecord:
    """`classes`: their number; `reused`: whether an earlier run made the file."""

    sha256: str
    classes: int
    model_folder: str
    reused: bool = False


def classifier(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> ClassifierRecord:  # fmt: skip
    """The stage: see `provide`."""
    with stage_note(work_uri, "classifier") as note:
        record = provide(
            work_uri, classes=classes, model=model, pretrained=pretrained, fingerprint=fingerprint, weights=weights
        )
        note.result = f"{record.classes} classes" + (", made by an earlier run" if record.reused else "")
    return record


def provide(
    work_uri: str, *, classes: str, model: str, pretrained: str, fingerprint: str, weights: str
) -> ClassifierRecord:  # fmt: skip
    """Writes the classifier file to `weights`: a copy of the cached file if that is intact, else a new one, which is
    cached; its model is written to WORK_URI/models.

    Args:
        fingerprint: a hash of the contents of class file and model; '' to compute it.
    """
    work = WorkUri(work_uri)
    folder = work.classifier(fingerprint or inputs_fingerprint(classes, model, pretrained))
    if (cached := load_cached(folder)) is not None:
        record, data = cached
        storage.write_bytes(weights, data)
        logger.info(f"{record.classes} classes: the classifier of an earlier run, {folder}")
        return replace(record, reused=True)
    file = storage.join(folder, CLASSIFIER_FILE)  # `weights` is a path of the orchestrator, without an extension
    result = call(
        "classifier", classes=classes, model=model, pretrained=pretrained, output=file, model_store=work.models,
    )  # fmt: skip
    data = storage.read_bytes(file)
    storage.write_bytes(weights, data)
    record = ClassifierRecord(hashlib.sha256(data).hexdigest(), len(result.classes), result.model_folder)
    # written last: a folder without it is incomplete
    storage.write_bytes(storage.join(folder, CLASSIFIER_JSON), json.dumps(asdict(record)).encode())
    return record


def load_cached(folder: str) -> tuple[ClassifierRecord, bytes] | None:
    """The cached file's record and bytes; None if it or its model is missing, or does not match the record."""
    try:
        content = json.loads(storage.read_bytes(storage.join(folder, CLASSIFIER_JSON)))
        record = ClassifierRecord(content["sha256"], content["classes"], content.get("model_folder", ""))
        data = storage.read_bytes(storage.join(folder, CLASSIFIER_FILE))
        intact = hashlib.sha256(data).hexdigest() == record.sha256
        if intact and not model_exists(record.model_folder):
            logger.info(f"{folder}: its model is not there; it is made again")
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        logger.info(f"{folder}: is damaged; it is made again")
        return None
    return record, data


def model_exists(folder: str) -> bool:
    """Whether the files of a classifier's model are in the folder."""
    files = (MODEL_FOLDER_FILE, OPEN_CLIP_WEIGHTS)
    return bool(folder) and all(storage.exists(storage.join(folder, file)) for file in files)
