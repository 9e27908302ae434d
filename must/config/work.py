"""WORK, the folder of one adaptation: its model, shards and the rest are found by what is in it.

`must adapt` makes such a folder, and so do single stages whose outputs are in one folder.
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
"""By kind: the file that a folder of that kind has."""
MOST = 1000  # entries of a folder that are looked at: one with more holds images
NAMES = {"labels": "labels", "metrics": "report", "onnx": "onnx", "answers": "review", "decision": "decision.json"}
"""By kind: what is made from a model, and its name in WORK."""
WORDS = {
    "bundle": "model of `must train`", "classifier": "classifier file of `must classifier`",
    "shards": "shards of `must shard`", "metrics": "report of `must evaluate`", "onnx": "ONNX file of `must export`",
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A folder and, by kind, the paths in it; more than one where a command has to be told which."""

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
        """The one path of that kind, '' if there is none. Raises UserError: there are several."""
        found: tuple[str, ...] = getattr(self, kind)
        require(
            len(found) < 2,
            f"{self.folder}: holds more than one {WORDS.get(kind, kind)}: {', '.join(found)}; name one with {option}",
        )
        return found[0] if found else ""

    def own(self, name: str, bundle: str) -> str:
        """The place of what is made from a bundle: WORK/NAME for WORK/model, WORK/BUNDLE-NAME for another one."""
        of = Path(bundle).name
        return storage.join(self.folder, name if of in ("", "model") else f"{of}-{name}")

    def place(self, kind: str, bundle: str, option: str) -> str:
        """What a stage reads, '' if there is none. Raises UserError: there are several."""
        if kind not in NAMES:
            return self.only(kind, option)
        own = self.own(NAMES[kind], bundle)
        own = storage.join(own, METRICS_FILE) if kind == "metrics" else own
        return own if own in getattr(self, kind) else self.only(kind, option) if len(self.bundle) < 2 else ""

    def split(self) -> str:
        """The split to measure on: test, unless the shards have none."""
        index = storage.read_json(storage.join(self.shards[0], INDEX_FILE), "--shards") if len(self.shards) == 1 else {}
        return "test" if not index or "test" in index.get("splits", ()) else "train"


def locate(folder: str) -> Work:
    """What the folders and files in a folder are. Nothing, if it is no folder on this machine."""
    place = Path(folder)
    if "://" in folder or not place.is_dir():
        return Work(folder)
    folder = folder.rstrip("/") or "/"
    found: dict[str, list[str]] = {field.name: [] for field in fields(Work) if field.name != "folder"}
    for entry in sorted(islice(os.scandir(place), MOST), key=lambda entry: entry.name):
        path = storage.join(folder, entry.name)
        if entry.name.endswith(".safetensors") and entry.is_file() and is_classifier(path):
            found["classifier"].append(path)
        elif entry.name.endswith(NAMES["decision"]):
            found["decision"].append(path)
        for kind, sign in SIGNS.items():
            if Path(path, sign).is_file():
                found[kind].append(storage.join(path, sign) if kind == "metrics" else path)
    return Work(folder, **{kind: tuple(paths) for kind, paths in found.items()})


def is_classifier(file: str) -> bool:
    """Whether a file of safetensors begins as `must classifier` writes it."""
    return b'"must"' in storage.read_bytes(file, 0, 64)


def with_work(stage: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """A stage's values with what was not given, where `model` is WORK, or a bundle in it.

    A field's `place` says what fills it: WORK fills all that have one, a bundle those that are required. What the stage
    itself has written there is not read.

    Raises:
        UserError: there are several of a kind, or none of a kind that the stage cannot do without.
    """
    places = [field for field in parameters_of(stage) if field.metadata["place"]]
    model = values.get("model")
    if not places or not isinstance(model, str | os.PathLike) or "://" in os.fspath(model):
        return values
    model = os.fspath(model).rstrip("/") or "/"
    whole = not any(Path(model, sign).is_file() for sign in (DESCRIPTION_FILE, ONNX_FILE))
    work = locate(model if whole else str(Path(model).parent))
    if not work:
        missing = [field for field in places if is_required(field) and field.name not in values]
        require(not missing, f"--model {model}: {why_not(Path(model))}")
        return values
    made = {storage.join(work.folder, to.removeprefix("to ")) for to in (field.metadata["place"] for field in places)}
    work = replace(work, bundle=tuple(path for path in work.bundle if path not in made))  # of an earlier `must select`
    found = {"model": model}
    for field in sorted(places, key=lambda field: field.name != "model"):  # what the others are named after
        name, kind = field.name, field.metadata["place"]
        if (name in values and name != "model") or not (whole or (is_required(field) and name != "model")):
            continue
        if kind.startswith("to "):
            name_there = kind.removeprefix("to ").format(**{"to": "onnx"} | values)
            found[name] = work.own(name_there, found["model"])
        elif kind == "split":
            found[name] = work.split()
        elif path := work.place(kind, found["model"] if name != "model" else "", flag(name)):
            found[name] = path
        else:
            needed = name == "model" or is_required(field)
            where = f"holds no {WORDS.get(kind, kind)}" if whole else f"no {WORDS.get(kind, kind)} is beside it"
            require(not needed, f"--model {model}: {where}; make it, or name it with {flag(name)}")
    return values | found


def standing_for(stage: type[StageConfig], values: dict[str, str]) -> str:
    """The folder WORK that says the same to a stage as `values`, of which `model` is one; '' if there is none."""
    folder = str(Path(values["model"]).parent)
    try:
        found = with_work(stage, {"model": folder})
    except UserError:
        return ""
    return folder if all(found.get(name) == value for name, value in values.items()) else ""


def why_not(place: Path) -> str:
    """Why it is no WORK."""
    if place.is_file():
        return f"is a file; give the folder that it is in: {place.parent}"
    return f"holds no {WORDS['bundle']} and nothing else of must" if place.is_dir() else "there is no such folder"
