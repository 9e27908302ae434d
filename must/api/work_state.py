"""What is in WORK, and what it was made from: adapt.json.

The first call works in WORK itself. If the inputs of a later call differ from those in adapt.json, what is affected is
made in a folder beside it, WORK/.next-HASH, and the rest is used as it is; at the end the new parts take the places of
the old ones, which go to WORK/before. Until then WORK is unchanged. A call that is killed during the exchange is
completed by the next one."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import pluralize
from must.config.work import (
    AGAIN,
    CHECKPOINTS,
    CLASSIFIER_FILE,
    DESCRIPTION_FILE,
    INDEX_FILE,
    MADE_FROM,
    METRICS_FILE,
    NEXT_PREFIX,
    OF_MODEL,
    ONNX_FILE,
    PARTS,
    PREDICTIONS_FILE,
    RECORD_FILE,
    REFINED_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
    WORDS,
    is_work,
)
from must.data.format import join_arrays, load_index, read_contents
from must.data.shards.listing import identify_source
from must.data.shards.workdir import WORK_FOLDER
from must.method.answers.answers_file import hash_answers
from must.method.model.description import complete_save

logger = logging.getLogger(__name__)

SHARDS, TEST, BUNDLE, LABELS, FILES, ANSWERS, FEATURES = (
    PARTS[name].path for name in ("shards", "test", "bundle", "labels", "files", "answers", "features")
)
REPORT = "report"
PATHS_IN = (
    f"{BUNDLE}/{DESCRIPTION_FILE}",
    f"{LABELS}/{REFINED_FILE}",
    f"{REPORT}/{METRICS_FILE}",
    f"{REPORT}/{REPORT_FILE}",
)
"""Files that name the folders that a stage was given."""
EXPORTS = tuple(PARTS[name].path for name in ("onnx", "open_clip"))  # of a model; `must export` made them
BEFORE, EXCHANGE, ASIDE = "before", "exchange.json", "old"
GUIDE = """\
# What `must adapt` made

| | |
|---|---|
| `labels/predictions.csv` | **your labels**: a row for each image, with your answers |
| `report/report.html` | how good model and labels are; `report/predictions.csv` is what it was measured with |
| `model/` | the model with its memory: `must predict FOLDER --model WORK`, where WORK is this folder |
| `onnx/`, `open_clip/` | the model for other programs, if `must export` made them |
| `review/` | people's answers; keep it, the rest can be made again by `must adapt WORK` |
| `before/` | parts that were replaced |
| all others | for `must` itself: packed images, their features, the model before, what the call was |
"""


class WorkState:
    """The parts of WORK: those that are up to date, where they are; the others, where they are made."""

    def __init__(self, work: Path, inputs: dict[str, Any], again: bool, words: dict[str, Any]) -> None:
        """Completes an exchange that was interrupted, and decides where the call works. Writes adapt.json there.
        Raises UserError: there are files of others with the names of parts."""
        self.work, self.folder, self.changed, self.damaged, self.why = work, work, set[str](), False, ""
        self.inputs = inputs = json.loads(json.dumps(inputs, default=str))
        for unfinished in work.glob(f"{NEXT_PREFIX}*/{EXCHANGE}"):
            exchange(work, unfinished.parent)
        record = work / RECORD_FILE
        before = storage.read_json(str(record), "adapt") if record.exists() else {}
        exports, _ = (before.pop(name, None) for name in ("exports", WORDS))
        self.words, self.exports = words, dict[str, dict[str, Any]](exports or {})
        others = [name for name in MADE_FROM if (work / name).exists()]
        require(
            bool(before) or not others or is_work(str(work)),
            f"output {work}: holds {', '.join(sorted(others))}, not of `must adapt`; choose a folder of its own",
        )
        for folder in (work / SHARDS, work / TEST):
            if missing := find_missing(folder, bool(before)):
                logger.info(f"{missing} is missing; {folder} is made anew")
                remove(folder)
                self.damaged = True
        if again or (others and before != inputs):
            self.changed = {name for name in inputs if again or before.get(name) != inputs[name]}
            self.changed |= {AGAIN} if again else set()
            key = hashlib.sha256(json.dumps([inputs, again]).encode()).hexdigest()[:12]
            self.folder = work / f"{NEXT_PREFIX}{key}"
            why = f"{', '.join(sorted(self.changed))} changed since"
            if again or not before:
                why = "all is made anew" if again else f"there is no {RECORD_FILE}, so that all is looked at again"
            self.why = f"{why}; {work.name} is exchanged at the end"
        self.new = not (self.folder / RECORD_FILE).exists()  # made by this call
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_record()

    def write_record(self) -> None:
        """adapt.json: the inputs, the words of the call, and exports to make again."""
        more = {WORDS: self.words} | ({"exports": self.exports} if self.exports else {})
        storage.write_bytes(str(self.folder / RECORD_FILE), json.dumps(self.inputs | more, indent=1).encode())

    def abandon(self) -> None:
        """Removes what this call has made; for inputs that are refused."""
        made = [self.work / name for name in (*MADE_FROM, RECORD_FILE)] if self.folder == self.work else [self.folder]
        for path in made if self.new else ():
            remove(path)

    @property
    def outdated(self) -> set[str]:
        return {part for part, sources in MADE_FROM.items() if self.changed & set(sources)}

    def part(self, name: str) -> Path:
        return (self.folder if name in self.outdated else self.work) / name

    def weights_sha256(self) -> str:
        """Of the model; "" if there is none."""
        model = self.part(BUNDLE)
        complete_save(str(model))
        if not (model / WEIGHTS_FILE).exists():
            (model / DESCRIPTION_FILE).unlink(missing_ok=True)
        return str(value(model / DESCRIPTION_FILE, "weights_sha256") or "")

    def answers(self) -> str:
        """Where the answers are: those of WORK, or else those that the labels were made with; "" if there are none.
        Those of WORK first, as the labels of a copied or moved WORK name the place of the original."""
        configs = [value(folder / REFINED_FILE, "config") for folder in (self.part(LABELS), self.work / LABELS)]
        used = [config.get("answers") for config in configs if isinstance(config, dict)]
        places = [place for place in (str(self.part(ANSWERS)), *used) if isinstance(place, str)]
        return next((place for place in places if hash_answers(place)), "")

    def promised(self) -> dict[str, Any]:
        """What the last `must refine` was asked to promise about the labels."""
        config = value(self.part(LABELS) / REFINED_FILE, "config") or value(self.work / LABELS / REFINED_FILE, "config")
        return {name: config[name] for name in ("risk", "promise") if name in (config or {})}

    def labels_are_up_to_date(self) -> bool:
        """Whether they are of this model, these images, and the answers that there are."""
        file, weights = self.part(LABELS) / REFINED_FILE, self.weights_sha256()
        made_of = [value(file, name) for name in ("weights_sha256", "answers_sha256")]
        is_whole = bool(weights) and (self.part(LABELS) / PREDICTIONS_FILE).exists()
        return is_whole and made_of == [weights, hash_answers(self.answers())]

    def report_is_up_to_date(self) -> bool:
        """Whether it measured this model."""
        model = value(self.part(REPORT) / METRICS_FILE, "model") or {}
        return (self.part(REPORT) / REPORT_FILE).exists() and model.get("weights_sha256") == self.weights_sha256()

    def compare_images(self) -> None:
        """Says how many images are new or gone; if none is, the old shards and what was made of them stay."""
        if SHARDS not in self.outdated or not (self.work / SHARDS / INDEX_FILE).exists():
            return
        (old, old_shards), (new, new_shards) = (read_shards(folder / SHARDS) for folder in (self.work, self.folder))
        images = np.unique(np.concatenate([old, new]))
        before, now = (np.bincount(images.searchsorted(part), minlength=len(images)) for part in (old, new))
        added, gone = (int(np.maximum(more, 0).sum()) for more in (now - before, before - now))  # copies count
        same = not added and not gone and old_shards == new_shards
        if added or gone:
            logger.info(f"{pluralize(added, 'new image')}, {gone:,} gone")
        else:
            logger.info(f"no image is new, and none gone{'' if same else '; names, order or copies of images changed'}")
        if same:
            remove(self.folder / SHARDS)
            self.changed -= {"images"}

    def adds_only(self, source: str, files: np.ndarray) -> bool:
        """Whether the shards that there are were made of this source, of some of its `files` (must/api/inputs.py)."""
        before, shards = self.work / FILES, self.work / SHARDS
        if (
            AGAIN in self.changed
            or self.folder == self.work
            or not (before.exists() and (shards / INDEX_FILE).exists())
        ):
            return False
        known = np.frombuffer(before.read_bytes(), "<u8")
        same = identify_source(load_index(str(shards)).source["uri"]) == identify_source(
            source
        )  # names are known by place
        return same and bool(len(known)) and bool(np.isin(known, files).all())

    def record_files(self, files: np.ndarray) -> None:
        """What the shards were made of."""
        storage.write_bytes(str(self.part(FILES)), files.astype("<u8").tobytes())

    def keep_trained(self) -> None:
        """A trained model of the same classes stays, as a copy: what took hours is not replaced by what takes none."""
        stays, model = BUNDLE in self.outdated and CLASSIFIER_FILE not in self.outdated, self.part(BUNDLE)
        if stays and is_trained(self.work) and not any((model / n).exists() for n in (DESCRIPTION_FILE, CHECKPOINTS)):
            copy = self.folder / f"{BUNDLE}.copy"
            remove(model)
            remove(copy)
            shutil.copytree(self.work / BUNDLE, copy, ignore=shutil.ignore_patterns(CHECKPOINTS))
            copy.rename(model)

    def find_old_exports(self) -> dict[str, dict[str, Any]]:
        """{name of an export of a model that is replaced: the parameters that it was made with}."""
        weights = self.weights_sha256()
        return {
            name: read_export(self.work / name)
            for name in EXPORTS
            if (self.work / name).exists() and not is_derived(self.work / name, weights)
        }

    def finish(self) -> None:
        """Exchanges the new parts for the old ones, and puts aside what was made of a model that is replaced."""
        if self.exports:
            self.write_record()  # a call after a kill makes them
        folder, new, weights = self.work / f"{NEXT_PREFIX}aside", list[str](), self.weights_sha256()
        if self.folder != self.work:
            folder, new = self.folder, [name for name in (*MADE_FROM, RECORD_FILE) if (self.folder / name).exists()]
        old = [name for name in self.outdated if (self.work / name).exists()]
        old += [name for name in OF_MODEL if (self.work / name).exists() and not is_derived(self.work / name, weights)]
        old += [RECORD_FILE] if old and new and (self.work / RECORD_FILE).exists() else []
        for file in PATHS_IN:
            if new and (path := folder / file).exists():
                # this end of the path has no character that JSON or HTML escapes
                storage.write_bytes(str(path), path.read_bytes().replace(f"/{folder.name}".encode(), b""))
        if old or new:
            (folder / ASIDE).mkdir(parents=True, exist_ok=True)
            storage.write_bytes(str(folder / EXCHANGE), json.dumps({"old": sorted(old), "new": new}).encode())
            exchange(self.work, folder)
        for unfinished in self.work.glob(f"{NEXT_PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (guide := self.work / "README.md").exists():
            storage.write_bytes(str(guide), GUIDE.encode())
        self.folder = self.work

    def end_exports(self) -> None:
        if self.exports:
            self.exports = {}
            self.write_record()


def exchange(work: Path, folder: Path) -> None:
    """Moves old parts from WORK to WORK/before, and new ones from `folder` to WORK. May be repeated after a kill.

    What is in before/ stays, with old parts that are missing there, if it is worth more than the old parts: they are no
    model, or one without training, and before/ has a trained one."""
    plan = storage.read_json(str(folder / EXCHANGE), "adapt")
    old, before = folder / ASIDE, work / BEFORE
    if old.exists():  # else it is before/ already
        for name in plan["old"]:
            if (work / name).exists() and (name not in plan["new"] or (folder / name).exists()):  # it is the old one
                (work / name).rename(old / name)
        for name in plan["new"]:
            if (folder / name).exists():
                (folder / name).rename(work / name)
        if is_trained(old) or ((old / BUNDLE).exists() and not is_trained(before)):
            shutil.rmtree(before, ignore_errors=True)
            old.rename(before)
        else:
            for part in old.iterdir():
                before.mkdir(exist_ok=True)
                if not (before / part.name).exists():
                    part.rename(before / part.name)
    (folder / EXCHANGE).unlink()  # first: a call after a kill in the next line must not repeat the above
    shutil.rmtree(folder)


def read_export(folder: Path) -> dict[str, Any]:
    """The parameters of `must export` that the ONNX file in the folder names; {} without one that can be read."""
    from must.deploy.onnx_model import EMBEDDING, OnnxClassifier

    if not (folder / ONNX_FILE).is_file():
        return {}
    try:
        metadata = OnnxClassifier(folder / ONNX_FILE).metadata
    except (UserError, ModuleNotFoundError):
        return {}
    made = {name: metadata[name] for name in ("precision", "input") if name in metadata}
    return made | {"embeddings": EMBEDDING in metadata}


def is_derived(path: Path, weights: str) -> bool:
    """Whether the cards of an export, or a decision, name these weights."""
    files = [path] if path.is_file() else path.glob("*.md")
    return any(weights.encode() in file.read_bytes() for file in files)


def is_trained(work: Path) -> bool:
    return bool((value(work / BUNDLE / DESCRIPTION_FILE, "provenance") or {}).get("config"))


def value(file: Path, name: str) -> Any:
    """A value in a JSON file; None if there is none."""
    return (storage.parse_object_or_none(file.read_bytes(), dict) or {}).get(name) if file.is_file() else None


def link_or_copy(source: str, target: str) -> None:
    """Shards do not change: those of two folders may be one file, where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def find_missing(shards: Path, is_ours: bool) -> Path | None:
    """The index, in a folder that `is_ours`, or the first of its files that is not there; None while it is written."""
    if not (shards / INDEX_FILE).exists():
        return shards / INDEX_FILE if is_ours and shards.exists() and not (shards / WORK_FOLDER).exists() else None
    index = load_index(str(shards))
    names = [*(shard.name for shard in index.shards), *(table["name"] for table in index.tables)]
    return next((shards / name for name in names if not (shards / name).exists()), None)


def read_shards(shards: Path) -> tuple[np.ndarray, list[str]]:
    """uint64 [N]: hashes of the images' contents; and the checksums of the shards, which hold the images and their
    names."""
    index = load_index(str(shards))
    checksums = [shard.sha256 for name in index.splits for shard in index.list_shards(name)]
    return join_arrays(part for _, part in read_contents(str(shards), index)), checksums


def check_places(folder: Path, inputs: dict[str, Any]) -> None:
    """Raises UserError: an input is in a part of WORK that this call may move away."""
    for label, value in inputs.items():
        if isinstance(value, str | os.PathLike) and not storage.is_remote(os.fspath(value)):
            path, work = Path(value).resolve(), folder.resolve()
            require(path != work, f"{label} {value}: is the output, too; choose another output")
            other = (path / RECORD_FILE).is_file()
            hint = "the model in it" if label == "--model" else "the photographs, or the shards in it"
            require(not other, f"{label} {value}: is a folder of `must adapt`; give {hint}")
            part = path.relative_to(work).parts[0] if path.is_relative_to(work) else ""
            is_free = part not in (*MADE_FROM, *OF_MODEL, BEFORE)
            require(is_free, f"{label} {value}: is in {work}, in a folder that must adapt writes; move it elsewhere")
