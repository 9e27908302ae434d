"""What is in WORK, and what it was made from.

A part is up to date if the hash of what it was made from stands in it: PARTS (must/config/work.py) says where. What is
not up to date is made in the order of PARTS. Shards and the classifier are made in WORK/.next, and take the places of
the old ones when all of them are there; a model is replaced by its successor in one step. So a call that is stopped
goes on with the first part that is not up to date."""

import hashlib
import json
import logging
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np

from must.answers.answers_file import hash_answers, read_answers, rename_answers
from must.base import storage
from must.base.console import write_lines
from must.base.parameters import require
from must.base.text import make_printable, pluralize
from must.config import AdaptConfig
from must.config.work import (
    BESIDE,
    CLASSIFIER_FILE,
    DESCRIPTION_FILE,
    FOLDERS_FILE,
    INDEX_FILE,
    MADE_FROM,
    METRICS_FILE,
    PARTS,
    PREDICTIONS_FILE,
    RECORD_FILE,
    REFINED_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
    Workspace,
    is_outdated,
    read_value,
    shorten_path,
)
from must.data.format import REJECTED, join_arrays, load_index, read_contents
from must.data.shards.listing import identify_source
from must.data.shards.workdir import WORK_FOLDER
from must.evaluation.gate import state_verdict
from must.evaluation.result import read_metrics
from must.model.classifier import read_header
from must.model.description import Provenance, complete_save, load_description

logger = logging.getLogger(__name__)

FILES = "files"  # in shards/: hashes of the files that were packed
LOG_FILE = "adapt.log"  # in WORK: all lines of the last call that made something
OURS = ("classifier", "models", "shards", "test", "features", "bundle", "labels", "report")  # `must adapt` makes them
OTHERWISE = "; names, order or copies of images changed"
GUIDE = """\
# What `must adapt` made

| | |
|---|---|
| `labels/predictions.csv` | **your labels**: a row for each image, with your answers |
| `labels/folders.csv` | pictures that seem to lie in the wrong folder, if folders are named after classes |
| `report/report.html` | how good model and labels are; `report/predictions.csv` is what it was measured with |
| `model/` | the model with its memory: `must predict FOLDER --model WORK`, where WORK is this folder |
| `onnx/`, `open_clip/` | the model for other programs, if `must export` made them |
| `review/` | people's answers; keep it, the rest can be made again by `must adapt WORK` |
| all others | for `must` itself: packed images, their features, CLIP before, what the call was, its log |
"""


class WorkState:
    """WORK, during a call of `must adapt`. `keys`: {an input of the call: its hash}; "" of test images: there are none.
    `changed`: whether this call has made anything."""

    def __init__(self, work: Path, keys: dict[str, str], again: bool) -> None:
        """Raises UserError: there are files of others with the names of parts."""
        self.work, self.beside, self.keys, self.again, self.changed = work, work / BESIDE, keys, again, False
        others = [path.name for path in map(self.place, OURS) if path.exists()]
        require(
            (work / RECORD_FILE).exists() or not others or Workspace(str(work)).is_made(),
            f"output {work}: holds {', '.join(sorted(others))}, not of `must adapt`; choose a folder of its own",
        )
        for folder in (self.place("shards"), self.place("test")) if not again else ():
            if (missing := find_missing(folder)) and (folder / MADE_FROM).exists():
                logger.info(f"{missing} is missing; {folder} is made anew")
                (folder / MADE_FROM).unlink()

    def place(self, part: str, *names: str, beside: bool = False) -> Path:
        """Of a part in WORK, or of a file in it; or of the one that is made beside."""
        return Path(Workspace(str(self.beside if beside else self.work)).place(part, *names))

    def compute_hash(self, source: str) -> str:
        """Of an input of the call, or of a part as it is now: what parts are made from."""
        match source:
            case "bundle":
                return self.weights_sha256()
            case "answers":
                return hash_answers(self.find_answers())
            case "classifier":
                return read_header(str(self.place("classifier"))).identity
            case "shards":
                return load_index(str(self.place("shards"))).sha256
            case "measured":
                return load_index(str(self.place("test" if self.keys["test_images"] else "shards"))).sha256
        return self.keys[source]

    def is_current(self, part: str, beside: bool = False) -> bool:
        """Whether it is there, and made from what there is now."""
        last = {"models": ("classifier",), "labels": ("labels", PREDICTIONS_FILE), "report": ("report", REPORT_FILE)}
        file = self.place(*last.get(part, (part,)), beside=beside)
        if not file.exists() or (part == "report" and is_outdated(file)):
            return False
        known = Workspace(str(self.beside if beside else self.work)).read_hashes(part)
        return all(known[source] == self.compute_hash(source) for source in known)

    def record(self, **values: Any) -> None:
        """Adds to adapt.json."""
        file = self.work / RECORD_FILE
        content = storage.parse_object_or_none(file.read_bytes(), dict) or {} if file.exists() else {}
        storage.write_bytes(str(file), json.dumps(content | values, indent=1).encode())

    def find(self, part: str) -> Path | None:
        """The folder of shards, test images or the models of the classifier that is of this call's inputs: beside until
        `take`, or in WORK; None if there is none."""
        places = [True] if self.again else [True, False]
        return next((self.place(part, beside=one) for one in places if self.is_current(part, beside=one)), None)

    def finish_part(self, part: str) -> None:
        """Writes what it was made from: then it is complete."""
        (source,) = PARTS[part].made_from
        storage.write_bytes(str(self.place(part, MADE_FROM, beside=True)), self.keys[source].encode())

    def take(self) -> None:
        """Puts the parts that were made beside into their places."""
        for part in ("shards", "test", "models"):
            if self.is_current(part, beside=True):
                self.changed = True
                for name in ("classifier", "models") if part == "models" else (part,):
                    remove(self.place(name))
                    self.place(name, beside=True).rename(self.place(name))
        remove(self.beside)
        if not self.keys["test_images"]:
            remove(self.place("test"))
        self.again = False

    def compare_images(self) -> None:
        """Says how many images are new or gone; if none is, the old shards stay."""
        old, new = self.place("shards"), self.place("shards", beside=True)
        if not (old / INDEX_FILE).exists() or find_missing(old):
            return
        (before, tars), (now, new_tars) = map(read_shards, (old, new))
        added, gone = (now - before).total(), (before - now).total()
        if added or gone:
            logger.info(f"{pluralize(added, 'new image')}, {gone:,} gone")
            return
        logger.info(f"no image is new, and none gone{'' if tars == new_tars else OTHERWISE}")
        if tars == new_tars and not self.again:
            for name in (FILES, MADE_FROM):
                (new / name).replace(old / name)
            remove(new)

    def adds_only(self, source: str, files: np.ndarray) -> bool:
        """Whether the shards that there are were made of this source, of some of its `files` (must/api/inputs.py)."""
        shards = self.place("shards")
        if self.again or not (shards / FILES).exists() or find_missing(shards) or not (shards / INDEX_FILE).exists():
            return False
        known = np.frombuffer((shards / FILES).read_bytes(), "<u8")
        uri = load_index(str(shards)).source["uri"]  # names are known by place
        same = identify_source(uri) == identify_source(source)
        return same and bool(len(known)) and bool(np.isin(known, files).all())

    def weights_sha256(self) -> str:
        """Of the model; "" if there is none."""
        model = self.place("bundle")
        complete_save(str(model))
        if not (model / WEIGHTS_FILE).exists():
            (model / DESCRIPTION_FILE).unlink(missing_ok=True)
        return str(read_value(model / DESCRIPTION_FILE, "weights_sha256") or "")

    def provenance(self) -> Provenance:
        """Of the model; an empty one if there is none, or one without training."""
        found = self.weights_sha256() and load_description(str(self.place("bundle"))).provenance
        return found if found and found.config else Provenance()

    def fits(self) -> bool:
        """Whether the model is of the classes, and of the CLIP, of this call, or is not trained: then it is made of
        the classifier. A trained one of others can only be replaced by another training."""
        origin, models = self.provenance(), self.find("models")
        if not origin or not models:
            return not origin
        header = read_header(str(models.with_name(CLASSIFIER_FILE)))
        same = load_description(str(self.place("bundle"))).classes == list(header.classes)
        return same and origin.model_sha256 == header.model_sha256

    def find_answers(self) -> str:
        """Where the answers are: those of WORK, or else those that the labels were made with; "" if there are none.
        Those of WORK first, as the labels of a copied or moved WORK name the place of the original."""
        places = [str(self.place("answers")), read_value(self.place("labels", REFINED_FILE), "config.answers")]
        return next((place for place in places if isinstance(place, str) and hash_answers(place)), "")

    def check_answers(self, list_names: Callable[[], tuple[str, ...]], rename: dict[str, str], drop: bool) -> None:
        """Raises UserError: a new name is not among the classes; or the model knows answers whose class is not."""
        before = load_description(str(self.place("bundle"))).classes if self.weights_sha256() else []
        given = [answer.label for answer in read_answers(self.find_answers()).values()] if before and not drop else []
        classes = list_names() if rename or given else ()
        for old, new in rename.items():
            require(new in classes, f"--rename {old}={new}: {new!r} is not among the classes")
        gone = Counter(label for label in given if label in before and rename.get(label, label) not in classes)
        counts = ", ".join(f"{count:,} of {label!r}" for label, count in gone.most_common())
        again = f"must adapt {shlex.quote(str(self.work))}"
        require(
            not gone,
            f"{pluralize(gone.total(), 'answer')} would be lost, as their class is gone: {counts}; if it has another "
            f"name now: {again} --rename {shlex.quote(str(next(iter(gone), '')))}=NEW; else: {again} --drop",
        )

    def rename_answers(self, rename: dict[str, str]) -> None:
        answers = self.find_answers()
        if rename and answers:
            count = rename_answers(answers, rename)
            logger.info(f"{pluralize(count, 'answer')} renamed in {answers}")

    def find_promise(self) -> dict[str, Any]:
        """What the last `must refine` was asked to promise about the labels."""
        config = read_value(self.place("labels", REFINED_FILE), "config") or {}
        return {name: config[name] for name in ("risk", "promise") if name in config}

    def list_old_exports(self, output: str) -> list[str]:
        """Lines: what `must export` and `must gate` made of another model than this one, and what makes it again."""
        weights, lines = self.weights_sha256(), list[str]()
        for name, part in PARTS.items():
            path = self.place(name)
            if part.command and path.exists() and not is_derived(path, weights):
                again = part.command.format(shlex.quote(output))
                lines.append(f"{path.name}: of the model before; {again} makes it again")
        return lines

    def describe(self) -> list[str]:
        """Lines: the labels, how sure they are, and what was measured."""
        if not self.changed:
            return ["nothing has changed"]
        refined = storage.read_json(str(self.place("labels", REFINED_FILE)), "output")
        answers = f", {pluralize(refined['answers'], 'answer')} among them" if refined["answers"] else ""
        pictures = pluralize(refined["images"], "picture")
        selection = load_description(str(self.place("bundle"))).provenance.selection
        accepted, misplaced = (refined["accepted"] or {}).get("text", ""), ""
        if folders := refined.get("folders"):
            misplaced = describe_misplaced(folders, shorten_path(str(self.work)))
        metrics = read_metrics(str(self.place("report", METRICS_FILE)))
        verdict = state_verdict(metrics)
        unknown = verdict.tone == "open" and refined["changed"] and not (refined["answers"] or metrics.labelled)
        ask = "how many of them are right is not known yet: name about fifty pictures with must review"
        return [
            f"labels of {pictures}{answers}; {refined['changed']:.1%} are other than those of CLIP alone",
            *filter(None, [selection and selection.measured and selection.measured.text(), accepted]),
            ask if unknown else make_printable(verdict.plain),
            *filter(None, [misplaced]),
        ]

    def finish(self, output: str, lines: MemoryHandler) -> None:
        """Says what was made. Writes README.md, unless somebody has changed it, and `lines` to the log."""
        logger.info("\n".join([*self.describe(), *self.list_old_exports(output)]))
        if not (guide := self.work / "README.md").exists():
            storage.write_bytes(str(guide), GUIDE.encode())
        if self.changed:
            write_lines(lines, self.work / LOG_FILE)


def describe_misplaced(folders: dict[str, Any], place: str) -> str:
    """`folders`: as in refined.json; `place`: WORK."""
    named, text = folders["wrong"] - folders["asked"], folders["text"]
    if not folders["wrong"]:
        return f"{text}, as far as the model can tell the classes apart"
    text += f", {named:,} of them by answers" if named else ""
    shown = f"; `must review {shlex.quote(place)}` shows {'the others' if named else 'them'} first"
    return f"{text}: {Workspace(place).place('labels', FOLDERS_FILE)}{shown if folders['asked'] else ''}"


def describe_images(shards: Path) -> str:
    index = load_index(str(shards))
    text = pluralize(sum(shard.samples for shard in index.shards), "picture")
    text += f", {index.duplicates:,} of them copies" if index.duplicates else ""
    rejected = pluralize(index.rejected, "file")
    return text + (f"; {rejected} could not be read: {shards / REJECTED}" if index.rejected else "")


def is_derived(path: Path, weights: str) -> bool:
    """Whether the cards of an export, or a decision, name these weights."""
    files = [path] if path.is_file() else path.glob("*.md")
    return any(weights.encode() in file.read_bytes() for file in files)


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


def find_missing(shards: Path) -> Path | None:
    """The index of a folder of shards, or the first of its files, that is not there; None while it is written."""
    if not (shards / INDEX_FILE).exists():
        return shards / INDEX_FILE if shards.exists() and not (shards / WORK_FOLDER).exists() else None
    index = load_index(str(shards))
    names = [*(shard.name for shard in index.shards), *(table["name"] for table in index.tables)]
    return next((shards / name for name in names if not (shards / name).exists()), None)


def read_shards(shards: Path) -> tuple[Counter[int], list[str]]:
    """Hashes of the images' contents, with their number; and the checksums of the shards, which hold the images and
    their names."""
    index = load_index(str(shards))
    checksums = [shard.sha256 for name in index.splits for shard in index.list_shards(name)]
    contents = join_arrays(part for _, part in read_contents(str(shards), index))
    return Counter(contents.tolist()), checksums


def check_places(config: AdaptConfig) -> None:
    """Raises UserError: the output is no folder for WORK, or an input is in a part of it that this call may replace."""
    work = Path(config.output).resolve()
    own = {part.path for name, part in PARTS.items() if name in OURS or part.command} | {BESIDE}
    require("://" not in config.output, f"output {config.output}: must be a folder on this machine")
    require(not work.is_file(), f"output {config.output}: is a file; give a folder")
    inputs = {"--images": config.images, "--test-images": config.test_images, "--model": config.model}
    for label, value in inputs.items():
        if isinstance(value, str | os.PathLike) and not storage.is_remote(os.fspath(value)):
            path = Path(value).resolve()
            require(path != work, f"{label} {value}: is the output, too; choose another output")
            other = (path / RECORD_FILE).is_file()
            hint = "the model in it" if label == "--model" else "the photographs, or the shards in it"
            require(not other, f"{label} {value}: is a folder of `must adapt`; give {hint}")
            part = path.relative_to(work).parts[0] if path.is_relative_to(work) else ""
            message = f"{label} {value}: is in {work}, in a folder that must adapt writes; move it elsewhere"
            require(part not in own, message)


def hash_inputs(*inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()
