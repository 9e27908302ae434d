"""WORK, the folder of one adaptation. Its model, shards and reports are recognized by the files in its subfolders.

`must adapt` makes such a folder, and so do single stages that write their outputs into one folder.
"""

import os
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import ANSWERS_FILE, DESCRIPTION_FILE, INDEX_FILE, METRICS_FILE, ONNX_FILE, REFINED_FILE
from must.base.parameters import StageConfig, flag, is_required, parameters_of, require

SIGNS = {
    "bundle": DESCRIPTION_FILE, "shards": INDEX_FILE, "labels": REFINED_FILE, "metrics": METRICS_FILE,
    "onnx": ONNX_FILE, "answers": ANSWERS_FILE,
}  # fmt: skip
"""By kind: the file that identifies a folder of that kind."""
MOST = 1000  # entries of a folder that are examined: a folder with more contains images
NAMES = {"labels": "labels", "metrics": "report", "onnx": "onnx", "answers": "review", "decision": "decision.json"}
"""By kind of output that is made from a model: its name in WORK."""
WORDS = {
    "bundle": "model of `must train`", "classifier": "classifier file of `must classifier`",
    "shards": "shards of `must shard`", "metrics": "report of `must evaluate`", "onnx": "ONNX file of `must export`",
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A folder and the paths in it, by kind. If a kind has several paths, the user must name one."""

    folder: str
    bundle: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    decision: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self) if field.name != "folder")

    def only(self, kind: str, option: str) -> str:
        """The single path of that kind, '' if there is none. Raises UserError: there are several."""
        paths: tuple[str, ...] = getattr(self, kind)
        require(
            len(paths) < 2,
            f"{self.folder}: holds more than one {WORDS.get(kind, kind)}: {', '.join(paths)}; name one with {option}",
        )
        return paths[0] if paths else ""

    def output_of(self, bundle: str, name: str) -> str:
        """The path of an output made from a bundle: WORK/NAME for WORK/model, WORK/BUNDLE-NAME for another bundle."""
        prefix = Path(bundle).name
        return storage.join(self.folder, name if prefix in ("", "model") else f"{prefix}-{name}")

    def input_of(self, bundle: str, kind: str, option: str) -> str:
        """The path of that kind for a stage to read, '' if there is none. Raises UserError: there are several."""
        if kind not in NAMES:
            return self.only(kind, option)
        path = self.output_of(bundle, NAMES[kind])
        path = storage.join(path, METRICS_FILE) if kind == "metrics" else path
        return path if path in getattr(self, kind) else self.only(kind, option) if len(self.bundle) < 2 else ""

    def split(self) -> str:
        """The split to measure on: test, or train if the shards have no test split."""
        index = storage.read_json(storage.join(self.shards[0], INDEX_FILE), "--shards") if len(self.shards) == 1 else {}
        return "test" if not index or "test" in index.get("splits", ()) else "train"


def locate(folder: str) -> Work:
    """Finds the files and folders of each kind in a folder. An empty Work if it is no folder on this machine."""
    if "://" in folder or not Path(folder).is_dir():
        return Work(folder)
    folder = folder.rstrip("/") or "/"
    paths: dict[str, list[str]] = {field.name: [] for field in fields(Work) if field.name != "folder"}
    for entry in sorted(islice(os.scandir(folder), MOST), key=lambda entry: entry.name):
        path = storage.join(folder, entry.name)
        if entry.name.endswith(".safetensors") and entry.is_file() and is_classifier(path):
            paths["classifier"].append(path)
        elif entry.name.endswith(NAMES["decision"]):
            paths["decision"].append(path)
        for kind, sign in SIGNS.items():
            if Path(path, sign).is_file():
                paths[kind].append(storage.join(path, sign) if kind == "metrics" else path)
    return Work(folder, **{kind: tuple(matches) for kind, matches in paths.items()})


def is_classifier(file: str) -> bool:
    """Whether `must classifier` wrote this safetensors file: its header says so."""
    return b'"must"' in storage.read_bytes(file, 0, 64)


def with_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values, completed with paths in WORK if `model` is WORK or a bundle in it.

    The metadata `work` of a field says which path it gets. If `model` is WORK, all fields with `work` are completed; if
    it is a bundle, only the required ones. A bundle that the stage itself wrote to WORK is not read.

    Raises:
        UserError: there are several paths of a kind, or none of a kind that the stage needs.
    """
    parameters = [field for field in parameters_of(stage) if field.metadata["work"]]
    model = values.get("model")
    if not parameters or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    model = os.fspath(model).rstrip("/") or "/"
    is_work = not any(Path(model, sign).is_file() for sign in (DESCRIPTION_FILE, ONNX_FILE))
    work = locate(model if is_work else str(Path(model).parent))
    if not work:
        missing = [field for field in parameters if is_required(field) and field.name not in values]
        require(not missing, f"--model {model}: {why_not(Path(model))}")
        return values
    outputs = {storage.join(work.folder, field.metadata["work"].removeprefix("to ")) for field in parameters}
    bundles = tuple(path for path in work.bundle if path not in outputs)  # not that of an earlier `must select`
    work = replace(work, bundle=bundles)
    paths = {"model": model}
    for field in sorted(parameters, key=lambda field: field.name != "model"):  # `model` first: the others depend on it
        name, kind = field.name, field.metadata["work"]
        if (name in values and name != "model") or not (is_work or (is_required(field) and name != "model")):
            continue
        if kind.startswith("to "):
            paths[name] = work.output_of(paths["model"], kind.removeprefix("to ").format(**{"to": "onnx"} | values))
        elif kind == "split":
            paths[name] = work.split()
        elif path := work.input_of(paths["model"] if name != "model" else "", kind, flag(name)):
            paths[name] = path
        else:
            needed = name == "model" or is_required(field)
            problem = f"holds no {WORDS.get(kind, kind)}" if is_work else f"no {WORDS.get(kind, kind)} is beside it"
            require(not needed, f"--model {model}: {problem}; make it, or name it with {flag(name)}")
    return values | paths


def standing_for(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK for which `with_work` gives the same `values`, `model` among them; '' if there is none."""
    folder = str(Path(values["model"]).parent)
    try:
        completed = with_work(stage, {"model": folder})
    except UserError:
        return ""
    return folder if all(completed.get(name) == value for name, value in values.items()) else ""


def why_not(path: Path) -> str:
    """The reason why a path is no WORK, for a message."""
    if path.is_file():
        return f"is a file; give the folder that it is in: {path.parent}"
    return f"holds no {WORDS['bundle']} and nothing else of must" if path.is_dir() else "there is no such folder"
