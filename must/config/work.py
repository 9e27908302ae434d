"""WORK, the folder of one adaptation: `must adapt` makes it, and so do single stages whose outputs have these names.

A stage whose `model` is WORK, or the bundle WORK/model, gets the paths that are not given from the table PARTS.
"""

import logging
import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from must.base import files, storage
from must.base.errors import UserError
from must.base.parameters import StageConfig, flag, is_required, list_parameters, require

logger = logging.getLogger(__name__)

NEXT_PREFIX = ".next-"  # of the folder in WORK in which a later call of `must adapt` makes parts


class Part(NamedTuple):
    path: str  # in WORK
    marker: str  # the file in it that identifies it; "" if `path` is the file
    words: str


PARTS = {
    "bundle": Part("model", files.DESCRIPTION_FILE, "model of `must train` or `must refine`"),
    "classifier": Part(files.CLASSIFIER_FILE, "", "classifier file of `must classifier`"),
    "shards": Part("shards", files.INDEX_FILE, "shards of `must shard`"),
    "test": Part("test", files.INDEX_FILE, "labelled images of `must adapt`"),
    "labels": Part("labels", files.REFINED_FILE, "labels of `must refine`"),
    "metrics": Part(f"report/{files.METRICS_FILE}", "", "report of `must evaluate`"),
    "onnx": Part("onnx", files.ONNX_FILE, "ONNX file of `must export`"),
    "answers": Part("review", files.ANSWERS_FILE, "answers of `must review`"),
    "decision": Part("decision.json", "", "decision of `must gate`"),
}
MADE_BY_ADAPT = ("bundle", "classifier", "shards", "labels", "metrics")


def find_part(work: str, kind: str) -> str:
    """The path of that kind in a folder of this machine; '' if it is not there."""
    part = PARTS[kind]
    path = storage.join(work, part.path)
    return path if "://" not in path and Path(path, part.marker).is_file() else ""


def find_split(work: str) -> str:
    """The split to measure on: test, or train if the shards have no test split."""
    shards = find_part(work, "test") or find_part(work, "shards")
    index = storage.read_json(storage.join(shards, files.INDEX_FILE), "--shards") if shards else {}
    return "test" if not index or "test" in index.get("splits", ()) else "train"


def is_measured(work: str) -> bool:
    """Whether the report, if there is one, is of the model that is there: answers and other images change the model."""
    metrics, bundle = (find_part(work, kind) for kind in ("metrics", "bundle"))
    if not metrics or not bundle:
        return True
    model = storage.read_json(metrics, "--metrics").get("model") or {}
    description = storage.read_json(storage.join(bundle, files.DESCRIPTION_FILE), "--model")
    return bool(model.get("weights_sha256") == description.get("weights_sha256"))


def is_work(folder: str) -> bool:
    """Whether anything of PARTS is there."""
    return any(find_part(folder, kind) for kind in PARTS)


def with_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values, completed with paths in WORK if `model` is WORK or WORK/model.

    The metadata `work` of a field names the part that it gets; `own NAME`: only if it is of the model that is there;
    `to NAME`: the stage writes to WORK/NAME.
    Raises UserError: nothing of a kind that the stage needs is there."""
    parameters = [field for field in list_parameters(stage) if field.metadata["work"]]
    model = values.get("model")
    if not parameters or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    folder = os.fspath(model).rstrip("/") or "/"
    if any(Path(folder, name).is_file() for name in (files.DESCRIPTION_FILE, files.ONNX_FILE)):
        in_work = Path(folder).name == PARTS["bundle"].path and find_part(str(Path(folder).parent), "classifier")
        if not in_work:  # a bundle or an ONNX file of its own
            return values
        folder = str(Path(folder).parent)
    if not is_work(folder):
        missing = [field for field in parameters if is_required(field) and field.name not in values]
        lack = "no model of `must adapt` there" if Path(folder).exists() else "no such folder"
        require(not missing, f"--model {model}: {lack}; give a folder that `must adapt` made")
        return values
    paths = dict[str, Any]()
    for field in parameters:
        name, kind = field.name, field.metadata["work"]
        if name in values and name != "model":
            continue
        if kind.startswith("to "):
            paths[name] = storage.join(folder, kind.removeprefix("to ").format(**{"to": "onnx"} | values))
        elif kind == "split":
            paths[name] = find_split(folder)
        elif kind == "measured":
            paths[name] = find_part(folder, "test") or find_part(folder, "shards")
        elif path := find_part(folder, kind.removeprefix("own ")):
            if not kind.endswith("metrics") or is_measured(folder):
                paths[name] = path
            else:
                measure = f"its report is of the model before; must evaluate {shlex.quote(folder)} measures this one"
                require(kind.startswith("own "), f"--model {model}: {measure}")
                logger.info(f"{model}: {measure}")
        elif name == "model" and field.metadata["kind"] == "output":
            paths[name] = storage.join(folder, PARTS[kind].path)
        else:
            again = Path(folder, files.RECORD_FILE).exists() and kind in MADE_BY_ADAPT
            make = "the same `must adapt` again makes it" if again else "make it"
            message = f"--model {model}: no {PARTS[kind].words} is in it; {make}, or name it with {flag(name)}"
            require(name != "model" and not is_required(field), message)
    return values | paths


def find_adapted(model: str) -> str:
    """The folder WORK of `must adapt` whose bundle is `model`, or will be at the end of a call that makes it anew in
    WORK/.next-HASH; '' if there is none. The path begins in the current folder if WORK is below it."""
    folder = Path(model).parent
    if Path(model).name != PARTS["bundle"].path or not (folder / files.RECORD_FILE).is_file():
        return ""
    return shorten_path(str(folder))


def shorten_path(path: str) -> str:
    """A path in WORK/.next-HASH as it will be at the end of `must adapt`; relative if below the current folder."""
    path = re.sub(rf"/{re.escape(NEXT_PREFIX)}[0-9a-f]{{12}}(?=/|$)", "", path)
    return os.path.relpath(path) if path.startswith("/") and Path(path).is_relative_to(Path.cwd()) else path


def find_work(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK for which `with_work` gives the same `values`, `model` among them; '' if there is none."""
    folder = values["model"].rpartition("/")[0] or "."  # as the user typed it: ./work
    try:
        completed = with_work(stage, {"model": folder}) if is_work(folder) else {}
    except UserError:  # parts are missing
        return ""
    return folder if all(completed.get(name) == value for name, value in values.items()) else ""
