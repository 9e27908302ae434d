"""What is in WORK, and what it was made from: adapt.json.

The first call works in WORK itself. If the inputs of a later call differ from those in adapt.json, what is affected is
made in a folder beside it, WORK/.next-HASH, and the rest is used as it is; at the end the new parts take the places of
the old ones, which go to WORK/before. Until then WORK is unchanged. A call that is killed during the exchange is
completed by the next one.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from must.api.inputs import ImageSource
from must.base import storage
from must.base.errors import UserError
from must.base.files import (
    ANSWERS_FILE,
    CLASSIFIER_FILE,
    DESCRIPTION_FILE,
    INDEX_FILE,
    METRICS_FILE,
    RECORD_FILE,
)
from must.base.text import counted
from must.data.format.index import load_index
from must.data.shards.history import History
from must.data.shards.listing import open_source
from must.data.sources.base import ListingReport
from must.data.sources.files import Folder, Manifest

logger = logging.getLogger(__name__)

SHARDS, TEST, MODEL, LABELS, REPORT = "shards", "test", "model", "labels", "report"
MADE_FROM = {
    CLASSIFIER_FILE: ("classes", "model", "pretrained"),
    "classes.yaml": ("classes",),
    SHARDS: ("images",),
    TEST: ("test_images",),
    MODEL: ("images", "classes", "model", "pretrained", "settings"),
    LABELS: ("images", "classes", "model", "pretrained", "settings"),
    REPORT: ("images", "classes", "model", "pretrained", "settings", "test_images"),
}
"""By part: the inputs whose change makes it outdated."""
DERIVED = ("onnx", "open_clip", "decision.json")  # of a model that is replaced; other stages made them
BEFORE, NEXT, EXCHANGE = "before", ".next-", "exchange.json"


class WorkState:
    """The parts of WORK: those that are up to date, where they are; the others, where they are made."""

    def __init__(self, work: Path, folder: Path, inputs: dict[str, Any], outdated: set[str]) -> None:
        self.work, self.folder, self.inputs, self.outdated = work, folder, inputs, outdated
        self.has_test = bool(inputs["test_images"])

    @classmethod
    def open(cls, work: Path, inputs: dict[str, Any], again: bool) -> "WorkState":
        """Completes an exchange that was interrupted, and decides where the call works. Writes adapt.json there."""
        inputs = json.loads(json.dumps(inputs, default=str))
        for unfinished in work.glob(f"{NEXT}*/{EXCHANGE}"):
            exchange(work, unfinished.parent)
        record = work / RECORD_FILE
        before = storage.read_json(str(record), "adapt") if record.exists() else None
        folder = work
        outdated = set[str]()
        if before is not None and (again or before != inputs):
            changed = {name for name in inputs if again or before.get(name) != inputs[name]}
            outdated = {part for part, sources in MADE_FROM.items() if changed & set(sources)}
            key = hashlib.sha256(json.dumps([inputs, again]).encode()).hexdigest()[:12]
            folder = work / f"{NEXT}{key}"
            logger.info(f"{work.name}: {', '.join(sorted(changed))} changed since; {work.name} is exchanged at the end")
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(str(folder / RECORD_FILE), json.dumps(inputs, indent=1).encode())
        return cls(work, folder, inputs, outdated)

    def part(self, name: str) -> Path:
        return (self.folder if name in self.outdated else self.work) / name

    @property
    def classifier(self) -> Path:
        return self.part(CLASSIFIER_FILE)

    @property
    def shards(self) -> Path:
        return self.part(SHARDS)

    @property
    def test(self) -> Path:
        return self.part(TEST)

    @property
    def model(self) -> Path:
        return self.part(MODEL)

    @property
    def labels(self) -> Path:
        return self.part(LABELS)

    @property
    def report(self) -> Path:
        return self.part(REPORT)

    @property
    def answers(self) -> Path:
        """People's answers stay where they are: they belong to a picture's sha256."""
        return self.work / "review"

    def answers_sha256(self) -> str:
        """ "" without answers."""
        file = self.answers / ANSWERS_FILE
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""

    def class_names(self) -> list[str]:
        from must.method.model.classifier import read_header

        return list(read_header(str(self.classifier), "--classifier")["classes"])

    def weights_sha256(self) -> str:
        """Of the model; "" if there is none."""
        return str(self.value(self.model / DESCRIPTION_FILE, "weights_sha256") or "")

    def measured_sha256(self) -> str:
        """The weights that the report measured."""
        model = self.value(self.report / METRICS_FILE, "model") or {}
        return str(model.get("weights_sha256", ""))

    def value(self, file: Path, name: str) -> Any:
        """A value in a JSON file; None if there is none."""
        return (storage.object_or_none(file.read_bytes(), dict) or {}).get(name) if file.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        if content:
            storage.write_bytes(str(self.folder / name), content)

    def drop(self, part: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)

    def compare_images(self) -> None:
        """Says how many images are new or gone; if none is, the old shards and what was made of them stay."""
        if SHARDS not in self.outdated or not (self.work / SHARDS / INDEX_FILE).exists():
            return
        old, new = (read_contents(folder / SHARDS) for folder in (self.work, self.folder))
        added, gone = len(np.setdiff1d(new, old)), len(np.setdiff1d(old, new))
        logger.info(
            f"{counted(added, 'new image')}, {gone:,} gone" if added or gone else "no image is new, and none gone"
        )
        if added or gone:
            return
        before = storage.read_json(str(self.work / RECORD_FILE), "adapt")
        changed = {name for name in self.inputs if before.get(name) != self.inputs[name]} - {"images"}
        self.drop(self.folder / SHARDS)
        self.outdated = {part for part, sources in MADE_FROM.items() if changed & set(sources)}

    def finish(self) -> None:
        """Exchanges the new parts for the old ones."""
        if self.folder != self.work:
            parts = [name for name in MADE_FROM if name in self.outdated and (self.folder / name).exists()]
            derived = list(DERIVED) if MODEL in parts else []
            content = json.dumps({"parts": [*parts, RECORD_FILE], "derived": derived})
            storage.write_bytes(str(self.folder / EXCHANGE), content.encode())
            exchange(self.work, self.folder)
        for unfinished in self.work.glob(f"{NEXT}*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    @staticmethod
    def remove_first_files(folder: Path) -> None:
        """Removes the files that a refused first call wrote."""
        for name in (RECORD_FILE, "classes.yaml", "images.jsonl"):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def exchange(work: Path, folder: Path) -> None:
    """Moves the new parts from `folder` to WORK, and the old ones to WORK/before. May be repeated after a kill."""
    plan = storage.read_json(str(folder / EXCHANGE), "adapt")
    old = folder / "old"
    old.mkdir(exist_ok=True)
    for name in plan["derived"]:
        if (work / name).exists():
            (work / name).rename(old / name)
    for name in plan["parts"]:
        if not (folder / name).exists():  # moved before the kill
            continue
        if (work / name).exists():
            (work / name).rename(old / name)
        (folder / name).rename(work / name)
    shutil.rmtree(work / BEFORE, ignore_errors=True)
    old.rename(work / BEFORE)
    shutil.rmtree(folder)


def read_contents(shards: Path) -> np.ndarray:
    """uint64 [N], sorted and unique: hashes of the images' contents."""
    return np.unique(History(str(shards), load_index(str(shards))).contents)


def fingerprint_source(source: ImageSource, output: str) -> str:
    """Changes when the images change: names, sizes and times of a local folder's or table's files, or of the archive. A
    bucket's is its URI."""
    if storage.is_remote(source.source) or "{" in source.source:
        return source.source
    path = Path(source.source)
    if not path.exists():
        raise UserError(f"images {source.source}: there is no such folder or file")
    listing = open_source(source.source, "none", "images", output)
    digest = hashlib.sha256()
    if not isinstance(listing, Folder | Manifest):
        status = path.stat()
        return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    base = path if isinstance(listing, Folder) else path.parent
    for name in sorted(item.name for item in listing.items(ListingReport(lambda _name, _reason: None))):
        try:
            status = (base / name).stat()
        except (OSError, ValueError):
            continue
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
