"""WORK, the folder of one adaptation: `must adapt` makes it, and so do single stages whose outputs have these names."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from must.base import files, storage
from must.base.errors import UserError
from must.base.parameters import StageConfig, flag, is_required, parameters_of, require

MARKER_FILES = {
    "bundle": files.DESCRIPTION_FILE, "shards": files.INDEX_FILE, "labels": files.REFINED_FILE,
    "onnx": files.ONNX_FILE, "answers": files.ANSWERS_FILE,
}  # fmt: skip
"""By kind: the file that identifies a folder of that kind."""
BUNDLES = ("model", "selected")  # names in WORK
NAMES = {
    "classifier": files.CLASSIFIER_FILE, "shards": "shards", "labels": "labels",
    "metrics": f"report/{files.METRICS_FILE}", "onnx": "onnx", "answers": "review", "decision": "decision.json",
}  # fmt: skip
"""By kind: its name in WORK. What is made from another bundle than WORK/model has that bundle's name in front."""
WORDS = {
    "bundle": "model of `must train`", "classifier": "classifier file of `must classifier`",
    "shards": "shards of `must shard`", "metrics": "report of `must evaluate`", "onnx": "ONNX file of `must export`",
}  # fmt: skip


class Work:
    """A folder and the paths in it, by kind. `written`: paths that the stage writes to; a bundle there is not read."""

    def __init__(self, folder: str, written: Collection[str] = ()) -> None:
        self.folder = folder.rstrip("/") or "/"
        paths = (storage.join(self.folder, name) for name in BUNDLES)
        self.bundles = [path for path in paths if path not in written and holds(path, "bundle")]

    def __bool__(self) -> bool:
        return bool(self.bundles) or any(self.only(kind, "") for kind in NAMES)

    def only(self, kind: str, option: str, bundle: str = "") -> str:
        """The path of that kind, made from `bundle`; '' if there is none."""
        if kind == "bundle" or (kind == "onnx" and not bundle):
            paths = ", ".join(self.bundles)
            require(
                len(self.bundles) < 2,
                f"{self.folder}: holds more than one {WORDS['bundle']}: {paths}; name one with {option}",
            )
            if kind == "bundle":
                return paths
        path = self.output_of("" if kind in ("classifier", "shards") else bundle, NAMES[kind])
        return path if holds(path, kind) else ""

    def output_of(self, bundle: str, name: str) -> str:
        """The path of an output made from a bundle: WORK/NAME for WORK/model, WORK/BUNDLE-NAME for another bundle."""
        prefix = Path(bundle).name
        return storage.join(self.folder, name if prefix in ("", "model") else f"{prefix}-{name}")

    def split(self) -> str:
        """The split to measure on: test, or train if the shards have no test split."""
        shards = self.only("shards", "--shards")
        index = storage.read_json(storage.join(shards, files.INDEX_FILE), "--shards") if shards else {}
        return "test" if not index or "test" in index.get("splits", ()) else "train"


def holds(path: str, kind: str) -> bool:
    """Whether a path on this machine is of that kind."""
    return "://" not in path and Path(path, MARKER_FILES.get(kind, "")).is_file()


def with_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values, completed with paths in WORK if `model` is WORK or a bundle in it.

    The metadata `work` of a field says which path it gets. If `model` is WORK, all fields with `work` are completed; if
    it is a bundle, only the required ones, and the ONNX file made from it if `model` is to be one."""
    parameters = [field for field in parameters_of(stage) if field.metadata["work"]]
    model = values.get("model")
    if not parameters or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    model = os.fspath(model).rstrip("/") or "/"
    is_work = not any(Path(model, name).is_file() for name in (files.DESCRIPTION_FILE, files.ONNX_FILE))
    folder = model if is_work else str(Path(model).parent)
    work = Work(folder, [storage.join(folder, field.metadata["work"].removeprefix("to ")) for field in parameters])
    if not work:
        missing = [field for field in parameters if is_required(field) and field.name not in values]
        lack = "no model of `must train` there" if Path(folder).exists() else "no such folder"
        require(not missing, f"--model {model}: {lack}; give a folder that `must adapt` made")
        return values
    paths = {"model": model}
    for field in sorted(parameters, key=lambda field: field.name != "model"):  # `model` first: the others depend on it
        name, kind = field.name, field.metadata["work"]
        if name == "model":
            completes = is_work or (kind == "onnx" and holds(model, "bundle"))
        else:
            completes = name not in values and (is_work or is_required(field))
        if not completes:
            continue
        if kind.startswith("to "):
            paths[name] = work.output_of(paths["model"], kind.removeprefix("to ").format(**{"to": "onnx"} | values))
        elif kind == "split":
            paths[name] = work.split()
        elif path := work.only(kind, flag(name), "" if name == "model" and is_work else paths["model"]):
            paths[name] = path
        else:
            where = "in it" if is_work else "beside it"
            message = f"--model {model}: no {WORDS.get(kind, kind)} is {where}; make it, or name it with {flag(name)}"
            require(name != "model" and not is_required(field), message)
    return values | paths


def work_folder_of(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK for which `with_work` gives the same `values`, `model` among them; '' if there is none."""
    folder = str(Path(values["model"]).parent)
    try:
        completed = with_work(stage, {"model": folder})
    except UserError:
        return ""
    return folder if all(completed.get(name) == value for name, value in values.items()) else ""
