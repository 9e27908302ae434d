"""What lies where: in WORK, the folder of one adaptation, and at WORK_URI, the place of a pipeline's runs.

`must adapt` makes WORK, and so do single stages whose outputs have these names. A stage whose `model` is WORK, or the
bundle WORK/model, gets the paths that are not given from there: its parameters name their `part`. The names of files
that several packages use stand here, too. security.md lists who may write to WORK_URI."""

import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import StageConfig, flag, is_required, list_parameters, require
from must.config.deploy import ExportConfig

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
REFINED_FILE, COPIES_FILE, FOLDERS_FILE = "refined.json", "copies.csv", "folders.csv"  # beside predictions.csv
ANSWERS_FILE = "answers.jsonl"  # of `must review`

WORDS = "words"  # in adapt.json: what the last `must adapt` was called with
MADE_FROM = "made_from"  # the file in a part with the hash of what it was made from
BESIDE = ".next"  # the folder in WORK in which `must adapt` makes parts
JOB_FILE, JOB_BUNDLE = "job.yaml", "bundle"  # of a TrainJob: the parameters of training; the model that it writes


class Part(NamedTuple):
    path: str  # in WORK or at WORK_URI
    marker: str = ""  # the file in it that identifies it; "" if `path` is the file
    words: str = ""  # in messages; "" if no stage is given it
    # By `must adapt`: {what it is made from, a part or an input of the call: the name of its hash in the marker, which
    # is JSON; "" if all of the file MADE_FROM is the hash}. The part is up to date if these are the hashes of today.
    made_from: Mapping[str, str] = MappingProxyType({})
    command: str = ""  # what makes it of WORK, {}, if `must adapt` does not


PARTS: Final = {
    "classifier": Part(CLASSIFIER_FILE, "", "classifier file of `must classifier`"),
    "models": Part("models", made_from={"classes": ""}),  # of classifiers: later stages need no hub
    "shards": Part("shards", INDEX_FILE, "shards of `must shard`", {"images": ""}),
    "test": Part("test", INDEX_FILE, "labelled images of `must adapt`", {"test_images": ""}),
    "features": Part("features", "", "features of the images"),  # by a picture's sha256 and the tower, once for each
    "bundle": Part("model", DESCRIPTION_FILE, "model of `must train` or `must refine`"),  # with the labels
    "labels": Part("labels", REFINED_FILE, "labels of `must refine`", {
        "bundle": "weights_sha256", "answers": "answers_sha256", "classifier": "classifier_sha256",
        "shards": "index_sha256",
    }),
    "report": Part("report", METRICS_FILE, "report of `must evaluate`", {
        "bundle": "model.weights_sha256", "measured": "data.index_sha256",
    }),
    "checkpoints": Part(CHECKPOINTS),  # of training, by data, classes, start and settings: a retry finds them
    "answers": Part("review", ANSWERS_FILE, "answers"),  # they belong to a picture's sha256
    "onnx": Part("onnx", ONNX_FILE, "ONNX file", command="must export {}"),
    "open_clip": Part("open_clip", command="must export {} --to open_clip"),
    "decision": Part("decision.json", "", "decision", command="must gate {}"),
    "sorted": Part("sorted"),
    # of a pipeline
    "classifiers": Part("classifiers"),  # by a hash of their inputs
    "jobs": Part("jobs"),  # by run: what its TrainJob reads, and the model that it writes
    "notes": Part("notes"),  # by run: one for each stage, a copy of the report, and the run's summary page
    "registry": Part("registry"),  # promoted models, unless the run has another registry_uri
}  # fmt: skip


class Workspace:
    """WORK, a folder on this machine; or WORK_URI, which all stages of a pipeline can access, or gs://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def place(self, part: str, *keys: str) -> str:
        """Of a part, or of one of several, such as the notes of a run."""
        return storage.join(self.uri, PARTS[part].path, *keys)

    def notes(self, run_id: str) -> str:
        """The notes of one run. Runs without an id share one folder."""
        return self.place("notes", run_id or "run")

    def registry(self, registry_uri: str = "") -> str:
        """`registry_uri`, or the default if that is ''."""
        return registry_uri or self.place("registry")

    def find(self, part: str) -> str:
        """The place of the part in a folder of this machine; '' if it is not there."""
        place = self.place(part)
        return place if "://" not in place and Path(place, PARTS[part].marker).is_file() else ""

    def read_hashes(self, part: str) -> dict[str, Any]:
        """{what the part in a folder of this machine was made from: its hash}; None where no hash stands."""
        kind = PARTS[part]
        files = {name: Path(self.place(part, kind.marker if name else MADE_FROM)) for name in kind.made_from.values()}
        return {source: read_value(files[name], name) for source, name in kind.made_from.items()}

    def read_words(self) -> dict[str, Any]:
        """What the last `must adapt` was called with; {} if there was none."""
        record = Path(self.uri, RECORD_FILE)
        return (storage.read_json(str(record), "WORK").get(WORDS) if record.is_file() else None) or {}

    def find_split(self) -> str:
        """The split to measure on: test, or train if the shards have no test split."""
        shards = self.find("test") or self.find("shards")
        index = storage.read_json(storage.join(shards, INDEX_FILE), "--shards") if shards else {}
        return "test" if not index or "test" in index.get("splits", ()) else "train"

    def is_measured(self) -> bool:
        """Whether the report, if there is one, is of the model that is there: answers and other images change it."""
        bundle = self.find("bundle")
        if not self.find("report") or not bundle:
            return True
        description = storage.read_json(storage.join(bundle, DESCRIPTION_FILE), "--model")
        return bool(self.read_hashes("report")["bundle"] == description.get("weights_sha256"))

    def is_made(self) -> bool:
        """Whether anything that a stage can be given is there."""
        return any(self.find(name) for name, part in PARTS.items() if part.words)


OUTDATED = '<p class="outdated"><strong>This report is of another model than the one beside it.</strong> '
"""In a report, where a model was replaced since."""


def read_value(file: Path, name: str = "") -> Any:
    """What an object in JSON has under a name, such as model.weights_sha256, or with "" the text of the file; None if
    there is none."""
    if not name or not file.is_file():
        return file.read_text() if file.is_file() else None
    value: Any = storage.parse_object_or_none(file.read_bytes(), dict)
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def outdate_report(model: str) -> None:
    """Says in the first line of the report in WORK, if there is one, that it is not of the model that is written now to
    WORK/model."""
    work, _, name = model.rstrip("/").rpartition("/")
    page = Path(Workspace(work).place("report", REPORT_FILE))
    if name == PARTS["bundle"].path and "://" not in work and page.is_file() and not is_outdated(page):
        line = f"{OUTDATED}<code>must adapt {shlex.quote(Path(work).name)}</code> makes it again.</p>"
        text = page.read_text(encoding="utf-8", errors="surrogateescape").replace("<body>", f"<body>\n{line}", 1)
        storage.write_bytes(str(page), text.encode(errors="surrogateescape"))


def is_outdated(page: Path) -> bool:
    return OUTDATED in page.read_text(encoding="utf-8", errors="surrogateescape")


def list_in_work(stage: type[StageConfig]) -> list[Field[Any]]:
    """The parameters that have a value in WORK; none if the stage is not given WORK, as its `model`."""
    found = [field for field in list_parameters(stage) if field.metadata["parts"]]
    return found if any(field.name == "model" for field in found) else []


def complete_from_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values, completed with paths in WORK if `model` is WORK or WORK/model.

    Raises UserError: nothing of a kind that the stage needs is there."""
    parameters, model = list_in_work(stage), values.get("model")
    if not parameters or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    folder = os.fspath(model).rstrip("/") or "/"
    if any(Path(folder, name).is_file() for name in (DESCRIPTION_FILE, ONNX_FILE)):
        own, folder = Path(folder).name, str(Path(folder).parent)
        if own != PARTS["bundle"].path or not Workspace(folder).find("classifier"):  # not in WORK
            return values
    elif not Workspace(folder).is_made():
        missing = [field for field in parameters if is_required(field) and field.name not in values]
        lack = "no model of `must adapt` there" if Path(folder).exists() else "no such folder"
        require(not missing, f"--model {model}: {lack}; give a folder that `must adapt` made")
        return values
    missing = [field for field in parameters if field.name == "model" or field.name not in values]
    found = {field.name: find_value(Workspace(folder), stage, field, values) for field in missing}
    return values | {name: value for name, value in found.items() if value}


def complete_from_record(values: dict[str, Any]) -> dict[str, Any]:
    """The values of `must adapt`, completed by those of the call that made WORK, where no others are given: if its
    images are WORK, or its output is WORK and no classes are given.

    Raises UserError: there is no such folder, or the images of that call cannot be found again."""
    again = "output" in values and "classes" not in values
    work = values.get("output" if again else "images")
    if not isinstance(work, str | os.PathLike) or "://" in os.fspath(work) or ("output" in values and not again):
        return values
    record = Path(work, RECORD_FILE)
    if not record.is_file():
        require("classes" in values or again or record.parent.exists(), f"{work}: there is no such folder")
        return values
    words = Workspace(os.fspath(work)).read_words()
    completed = words | values
    completed["settings"] = (words.get("settings") or {}) | values.get("settings", {})
    if again:
        return completed
    photos, hint = words.get("images"), f"give them, as in: must adapt PHOTOS --output {shlex.quote(str(work))}"
    require(isinstance(photos, str), f"{work}: does not say where its images are; {hint}")
    photos = str(photos)
    require("://" in photos or Path(photos).exists(), f"{work}: its images are no longer at {photos}; {hint}")
    return completed | {"images": photos, "output": os.fspath(work).rstrip("/") or "/"}


def find_value(work: Workspace, stage: type[StageConfig], field: Field[Any], values: dict[str, Any]) -> str:
    """A parameter's value in WORK; '' to leave its default. A report is the value only if it is of the model that is
    there. Raises UserError: the stage needs it, and it is not there."""
    model, names = values["model"], [name.format(**{"to": "onnx"} | values) for name in field.metadata["parts"]]
    if field.name == "split":
        return work.find_split()
    if "output" in field.metadata["kind"]:
        return work.place(names[0]) if names[0] in PARTS else work.uri  # of a wrong --to, which is refused
    found = [name for name in names if work.find(name.partition("/")[0])]
    name, _, file = [*found, names[-1]][0].partition("/")
    folder, part, path = shlex.quote(work.uri), PARTS[name], work.find(name)
    if path and name == "report" and not work.is_measured():
        measure = f"its report is of the model before; must evaluate {folder} measures this one"
        require(stage is ExportConfig, f"--model {model}: {measure}")
        logger.info(f"{model}: {measure}")
        return ""
    make = "the same `must adapt` again makes it" if Path(work.uri, RECORD_FILE).exists() else "make it"
    make = f"`{part.command.format(folder)}` makes it" if part.command else make
    message = f"--model {model}: no {part.words} is in it; {make}, or name it with {flag(field.name)}"
    require(bool(path) or (field.name != "model" and not is_required(field)), message)
    return storage.join(path, file) if path and file else path


def find_adapted(model: str) -> str:
    """The folder WORK of `must adapt` whose bundle is `model`; '' if there is none. The path begins in the current
    folder if WORK is below it."""
    folder = Path(model).parent
    if Path(model).name != PARTS["bundle"].path or not (folder / RECORD_FILE).is_file():
        return ""
    return shorten_path(str(folder))


def shorten_path(path: str) -> str:
    """Relative if below the current folder."""
    return os.path.relpath(path) if path.startswith("/") and Path(path).is_relative_to(Path.cwd()) else path


def find_work(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK for which `complete_from_work` gives the same `values`, with `model`; '' if there is none."""
    folder = values["model"].rpartition("/")[0] or "."  # as the user typed it: ./work
    try:
        completed = complete_from_work(stage, {"model": folder}) if Workspace(folder).is_made() else {}
    except UserError:  # parts are missing
        return ""
    return folder if all(completed.get(name) == value for name, value in values.items()) else ""
