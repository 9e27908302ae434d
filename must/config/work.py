"""What lies where: in WORK, the folder of one adaptation, and at WORK_URI, the place of a pipeline's runs.

`must adapt` makes WORK, and so do single stages whose outputs have these names. A stage whose `model` is WORK, or the
bundle WORK/model, gets the paths that are not given from the table PARTS. The names of files that several packages use
stand here, too.

    WORK_URI/shards              of all runs, with index.json
             classifiers/KEY     zero-shot classifiers, by a hash of their inputs
             models/NAME-KEY     the models of the classifiers: later stages need no hub
             checkpoints/KEY     of training, by data, classes, start and settings: a retry finds them
             labels/KEY          refined labels of the images, of a run with answers, by the key of its checkpoints
             features/TOWER      of the pictures, by image tower: each picture passes once through a tower
             jobs/RUN_ID         what a run's TrainJob reads, and the model that it writes
             notes/RUN_ID        one note per stage, a copy of the report, and the run's summary page
             registry            promoted models, unless the run has another registry_uri

security.md lists who may write there."""

import logging
import os
import re
import shlex
from dataclasses import Field
from pathlib import Path
from typing import Any, NamedTuple

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import StageConfig, convert, flag, is_required, list_parameters, require

logger = logging.getLogger(__name__)


INDEX_FILE = "index.json"  # of a folder of shards
CLASSIFIER_FILE = "classifier.safetensors"  # in a folder that a stage writes
WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"  # a bundle's
NEXT_DESCRIPTION_FILE = "model.next.json"  # there while a bundle is written
ADAPTED = "adapted"  # folder with the fully adapted bundle (alpha 1), inside a bundle with another alpha
CHECKPOINTS = "checkpoints"  # folder of a training, in its output
LAST_FILE = "LAST"  # names the newest checkpoint
METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE = "metrics.json", "predictions.csv", "report.html"
ONNX_FILE = "model.onnx"  # an export's
MODEL_FOLDER_FILE = "open_clip_config.json"  # of a model folder as open_clip writes it
VERSION_FILE = "version.json"  # of a version in the registry
RECORD_FILE = "adapt.json"  # of `must adapt`
REFINED_FILE, COPIES_FILE = "refined.json", "copies.csv"  # of `must refine`, beside predictions.csv
ANSWERS_FILE = "answers.jsonl"  # of `must review`


WORDS = "words"  # in adapt.json: what the last `must adapt` was called with
NEXT_PREFIX = ".next-"  # of the folder in WORK in which a later call of `must adapt` makes parts


class WorkPart(NamedTuple):
    path: str  # in WORK
    marker: str = ""  # the file in it that identifies it; "" if `path` is the file
    words: str = ""  # in messages; "" if no stage is given it
    made_from: tuple[str, ...] = ()  # by `must adapt`: the inputs whose change makes it outdated
    of_model: bool = False  # goes with a model that is replaced


AGAIN = "again"  # of `must adapt`: everything anew
OF_CLASSIFIER = ("classes", "model", "pretrained")
OF_LABELS = ("images", *OF_CLASSIFIER, "settings")
PARTS = {
    "classes": WorkPart("classes.yaml", made_from=("classes",)),
    "classifier": WorkPart(CLASSIFIER_FILE, "", "classifier file of `must classifier`", OF_CLASSIFIER),
    "models": WorkPart("models", made_from=OF_CLASSIFIER),  # beside the classifier file
    "images": WorkPart("adapt-images", made_from=("images",)),  # that were in memory, or
    "list": WorkPart("adapt-images.jsonl", made_from=("images",)),  # their paths
    "shards": WorkPart("shards", INDEX_FILE, "shards of `must shard`", ("images",)),
    "files": WorkPart("images.hashes", made_from=("images",)),  # uint64: of the files of a folder that were packed
    "test": WorkPart("test", INDEX_FILE, "labelled images of `must adapt`", ("test_images",)),
    "features": WorkPart("features", "", "features of the images", (AGAIN,)),  # by a picture's sha256 and the tower
    "bundle": WorkPart("model", DESCRIPTION_FILE, "model of `must train` or `must refine`", OF_LABELS),
    "labels": WorkPart("labels", REFINED_FILE, "labels of `must refine`", OF_LABELS),
    "metrics": WorkPart(f"report/{METRICS_FILE}", "", "report of `must evaluate`", (*OF_LABELS, "test_images")),
    "answers": WorkPart("review", ANSWERS_FILE, "answers of `must review`"),  # stay: they belong to a picture's sha256
    "onnx": WorkPart("onnx", ONNX_FILE, "ONNX file of `must export`", of_model=True),
    "open_clip": WorkPart("open_clip", of_model=True),
    "decision": WorkPart("decision.json", "", "decision of `must gate`", of_model=True),
}
"""By the names that the metadata `work` of a parameter has."""
MADE_FROM = {part.path.partition("/")[0]: part.made_from for part in PARTS.values() if part.made_from}
"""What `must adapt` makes in WORK, by the file or folder that a later call exchanges."""
OF_MODEL = tuple(part.path for part in PARTS.values() if part.of_model)


class WorkUri:
    """A path that all stages of a pipeline can access, or gs://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.shards, self.models, self.features = (
            storage.join(uri, PARTS[name].path) for name in ("shards", "models", "features")
        )

    def notes(self, run_id: str) -> str:
        """The notes of one run. Runs without an id share one folder."""
        return storage.join(self.uri, "notes", run_id or "run")

    def classifier(self, key: str) -> str:
        return storage.join(self.uri, "classifiers", key)

    def checkpoints(self, key: str) -> str:
        return storage.join(self.uri, CHECKPOINTS, key)

    def labels(self, key: str) -> str:
        return storage.join(self.uri, PARTS["labels"].path, key)

    def job(self, run_id: str) -> "JobUri":
        return JobUri(storage.join(self.uri, "jobs", run_id))

    def registry(self, registry_uri: str = "") -> str:
        """`registry_uri`, or the default if that is ''."""
        return registry_uri or storage.join(self.uri, "registry")


class JobUri:
    """The files that a TrainJob's launcher and its nodes exchange: their pods share no disk."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.description = storage.join(uri, "job.yaml")  # the parameters of training
        self.classifier = storage.join(uri, CLASSIFIER_FILE)
        self.bundle = storage.join(uri, "bundle")  # the model that the nodes write


def find_part(work: str, kind: str) -> str:
    """The path of that kind in a folder of this machine; '' if it is not there."""
    part = PARTS[kind]
    path = storage.join(work, part.path)
    return path if "://" not in path and Path(path, part.marker).is_file() else ""


def find_split(work: str) -> str:
    """The split to measure on: test, or train if the shards have no test split."""
    shards = find_part(work, "test") or find_part(work, "shards")
    index = storage.read_json(storage.join(shards, INDEX_FILE), "--shards") if shards else {}
    return "test" if not index or "test" in index.get("splits", ()) else "train"


def is_measured(work: str) -> bool:
    """Whether the report, if there is one, is of the model that is there: answers and other images change the model."""
    metrics, bundle = (find_part(work, kind) for kind in ("metrics", "bundle"))
    if not metrics or not bundle:
        return True
    model = storage.read_json(metrics, "--metrics").get("model") or {}
    description = storage.read_json(storage.join(bundle, DESCRIPTION_FILE), "--model")
    return bool(model.get("weights_sha256") == description.get("weights_sha256"))


def is_work(folder: str) -> bool:
    """Whether anything of PARTS that a stage can be given is there."""
    return any(find_part(folder, kind) for kind, part in PARTS.items() if part.words)


def complete_from_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values, completed with paths in WORK if `model` is WORK or WORK/model.

    Raises UserError: nothing of a kind that the stage needs is there."""
    parameters = [field for field in list_parameters(stage) if field.metadata["work"]]
    model = values.get("model")
    if not parameters or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    folder = os.fspath(model).rstrip("/") or "/"
    if any(Path(folder, name).is_file() for name in (DESCRIPTION_FILE, ONNX_FILE)):
        own, folder = Path(folder).name, str(Path(folder).parent)
        if own != PARTS["bundle"].path or not find_part(folder, "classifier"):  # not in WORK
            return values
    elif not is_work(folder):
        missing = [field for field in parameters if is_required(field) and field.name not in values]
        lack = "no model of `must adapt` there" if Path(folder).exists() else "no such folder"
        require(not missing, f"--model {model}: {lack}; give a folder that `must adapt` made")
        return values
    missing = [field for field in parameters if field.name == "model" or field.name not in values]
    found = {field.name: find_value(folder, field, values) for field in missing}
    return values | {name: value for name, value in found.items() if value}


def complete_from_record(values: dict[str, Any]) -> dict[str, Any]:
    """The values of `must adapt`, completed by those of the call that made WORK, where no others are given: if its
    images are WORK, or its output is WORK and no classes are given.

    Raises UserError: the images of that call cannot be found again."""
    again = "output" in values and "classes" not in values
    work = values.get("output" if again else "images")
    if not isinstance(work, str | os.PathLike) or "://" in os.fspath(work) or ("output" in values and not again):
        return values
    record = Path(work, RECORD_FILE)
    if not record.is_file():
        return values
    words = storage.read_json(str(record), "adapt").get(WORDS) or {}
    completed = words | values
    if isinstance(words.get("settings"), dict):
        own = values.get("settings") or {}
        own = convert(own, dict[str, str], "--settings") if isinstance(own, str) else own
        completed["settings"] = words["settings"] | own
    if again:
        return completed
    photos, hint = words.get("images"), f"give them, as in: must adapt PHOTOS --output {shlex.quote(str(work))}"
    require(isinstance(photos, str), f"{work}: does not say where its images are; {hint}")
    photos = str(photos)
    require("://" in photos or Path(photos).exists(), f"{work}: its images are no longer at {photos}; {hint}")
    return completed | {"images": photos, "output": os.fspath(work).rstrip("/") or "/"}


def find_value(work: str, field: Field[Any], values: dict[str, Any]) -> str:
    """A parameter's value in WORK, by its metadata `work`; '' to leave its default.

    A row of PARTS, or the first of several that is there (`test or shards`); `own metrics`: only if it is of the model
    that is there; `split`: the split to measure on; `to PATH`: the stage writes to WORK/PATH."""
    kind, model = field.metadata["work"], values["model"]
    if kind.startswith("to "):
        return storage.join(work, kind.removeprefix("to ").format(**{"to": "onnx"} | values))
    if kind == "split":
        return find_split(work)
    kinds = kind.removeprefix("own ").split(" or ")
    path = next(filter(None, (find_part(work, name) for name in kinds)), "")
    if path and kinds == ["metrics"] and not is_measured(work):
        measure = f"its report is of the model before; must evaluate {shlex.quote(work)} measures this one"
        require(kind.startswith("own "), f"--model {model}: {measure}")
        logger.info(f"{model}: {measure}")
        return ""
    part = PARTS[kinds[-1]]
    again = bool(part.made_from) and Path(work, RECORD_FILE).exists()
    command = re.search("`(.+)`", part.words)
    make = f"`{command[1]} {shlex.quote(work)}` makes it" if command and not part.made_from else "make it"
    make = "the same `must adapt` again makes it" if again else make
    message = f"--model {model}: no {part.words} is in it; {make}, or name it with {flag(field.name)}"
    require(bool(path) or (field.name != "model" and not is_required(field)), message)
    return path


def find_adapted(model: str) -> str:
    """The folder WORK of `must adapt` whose bundle is `model`, or will be at the end of a call that makes it anew in
    WORK/.next-HASH; '' if there is none. The path begins in the current folder if WORK is below it."""
    folder = Path(model).parent
    if Path(model).name != PARTS["bundle"].path or not (folder / RECORD_FILE).is_file():
        return ""
    return shorten_path(str(folder))


def shorten_path(path: str) -> str:
    """A path in WORK/.next-HASH as it will be at the end of `must adapt`; relative if below the current folder."""
    path = re.sub(rf"/{re.escape(NEXT_PREFIX)}[0-9a-f]{{12}}(?=/|$)", "", path)
    return os.path.relpath(path) if path.startswith("/") and Path(path).is_relative_to(Path.cwd()) else path


def find_work(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK for which `complete_from_work` gives the same `values`, with `model`; '' if there is none."""
    folder = values["model"].rpartition("/")[0] or "."  # as the user typed it: ./work
    try:
        completed = complete_from_work(stage, {"model": folder}) if is_work(folder) else {}
    except UserError:  # parts are missing
        return ""
    return folder if all(completed.get(name) == value for name, value in values.items()) else ""
