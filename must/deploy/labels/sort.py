"""The stage `must sort`: one folder per class, with the images as links, copies, or moved. No file is overwritten.

A journal in the folder has the origin of every file, written before the file is placed, so that a stopped run can be
continued and `--undo` can restore the files.
"""

import filecmp
import json
import logging
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import JOURNAL_FILE
from must.base.names import safe_relative_path
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import CONTROLS, NONE_OF_THESE, brief, printable
from must.config.labels import SortConfig
from must.deploy.labels.formats import file_in, read_labels

logger = logging.getLogger(__name__)

LONGEST_FILE_NAME = 200  # bytes
HEAD_FIELDS, LINE_FIELDS = ("from", "labels", "how"), ("from", "to", "image")  # texts of a line of the journal


@dataclass(frozen=True)
class Outcome:
    """Images: `placed`, or restored by --undo; `missing`: not there any more, or changed and so left by --undo."""

    placed: int
    missing: int


def sort(config: SortConfig) -> Outcome:
    """Sorts, or undoes it; logs a summary.
    Raises ValueError: no labels, none of the images exists, or the folder was sorted from other labels."""
    into = storage.local(config.into)
    require(not into.exists() or into.is_dir(), f"--into {config.into}: is a file")
    return undo(into) if config.undo else place_all(config, into)


def place_all(config: SortConfig, into: Path) -> Outcome:
    labels = [label for label in read_labels(config.labels) if not label.unsure]
    labels = [label for label in labels if label.label or not config.named_only]
    require(bool(labels), f"--labels {config.labels}: holds no labels")
    paths = {label.image: path for label in labels if (path := file_of(label.image, config.root))}
    first = next((label.image for label in labels if label.image not in paths), "")
    require(
        bool(paths) or any(line["from"] for line in journal_of(into)),
        f"--labels {config.labels}: none of its {len(labels)} images is there, {brief(first)} for one; --root says "
        "which folder the names are below",
    )
    head = {
        "labels": storage.sha256_of(storage.local(file_in(config.labels))),
        "how": config.how,
        "abstain": config.abstain,
    } | ({"picked": True} if any(label.picked for label in labels) else {})
    earlier = read_journal(into, head)
    folders = Folders(into, [label.label for label in labels])
    into.mkdir(parents=True, exist_ok=True)
    placed, missing, filled = 0, 0, set[Path]()
    with (
        (into / JOURNAL_FILE).open("a", encoding="utf-8") as journal,
        bar(total=len(labels), desc="sort", leave=False) as progress,
    ):
        if not earlier and not journal.tell():
            journal.write(json.dumps({"from": "", **head}) + "\n")
        for label in labels:
            progress.update()
            source, line = paths.get(label.image), earlier.get(label.image)
            if line is None:
                if source is None:
                    missing += 1
                    continue
                unsure = label.probability is not None and label.probability < config.abstain
                target = folders.free_path(None if unsure else label.label, source.absolute())
                line = {"from": str(source.absolute()), "to": str(target.relative_to(into)), "image": label.image}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            target = into / line["to"]
            if not os.path.lexists(target):
                place_file(Path(line["from"]), target, config.how)
            placed += 1
            filled.add(target.parent)
    logger.info(
        f"{placed} images sorted into {len(filled)} folders of {config.into} ({config.how}); "
        f"must sort --undo --into {config.into} takes it back"
    )
    if missing:
        logger.info(f"{missing} images were not there, {printable(first)} for one")
    return Outcome(placed, missing)


def file_of(image: str, root: str) -> Path | None:
    """The local file of an image, below `root` or by its name alone; None if there is none, or the name is a URL."""
    if "://" in image and not image.startswith("file://"):
        return None
    names = [storage.join(root, image)] if root else []
    for name in [*names, image]:
        for candidate in (name, unescape(name)):
            if not storage.is_remote(candidate) and storage.local(candidate).is_file():
                return storage.local(candidate)
    return None


def unescape(name: str) -> str:
    r"""Replaces ``\udcXX`` and ``\xXX``, which stand for bytes that are not UTF-8 and for control characters."""
    name = re.sub(r"\\udc([0-9a-f]{2})", lambda match: chr(0xDC00 + int(match[1], 16)), name)
    for code, escape in CONTROLS.items():
        name = name.replace(escape, chr(code))
    return name


class Folders:
    """One folder per class; gives each file a path that no other file has."""

    def __init__(self, into: Path, classes: list[str | None]) -> None:
        self.into = into
        self.names: dict[str | None, str] = {}
        self.used: set[str] = set()  # paths, casefolded
        self.numbers = Counter[str]()  # of the files that had the same path, casefolded
        for name in sorted({name for name in classes if name is not None}):
            self.names[name] = self.free_name(folder_name(name), self.names.values())
        self.none = self.free_name(NONE_OF_THESE, self.names.values())
        if None in classes:
            self.names[None] = self.none

    @staticmethod
    def free_name(name: str, others: Any) -> str:
        """The name, or the first of NAME (2), NAME (3) ... that differs from all others also when case is ignored."""
        used, number, candidate = {other.casefold() for other in others}, 1, name
        while candidate.casefold() in used:
            number += 1
            candidate = f"{name} ({number})"
        return candidate

    def free_path(self, label: str | None, source: Path) -> Path:
        """A new path for a file: its name, with a number where that path is in use."""
        folder = self.into / self.names.setdefault(label, self.none)
        first = str(folder / source.name).casefold()
        while True:
            self.numbers[first] += 1
            number = self.numbers[first]
            ending = f" ({number}){source.suffix}"
            name = source.name if number == 1 else shortened(source.stem, LONGEST_FILE_NAME - len(ending)) + ending
            target = folder / name
            key = str(target).casefold()
            if key not in self.used and not os.path.lexists(target):
                self.used.add(key)
                return target


def folder_name(name: str) -> str:
    """The folder name of a class: without characters that are special on any system."""
    text = "".join("_" if char in '/\\:*?"<>|' or not char.isprintable() else char for char in name).strip(" .")
    return shortened(text, LONGEST_FILE_NAME) or "_"


def shortened(text: str, limit: int) -> str:
    """The longest beginning of at most `limit` bytes."""
    while text and len(text.encode("utf-8", "surrogatepass")) > limit:
        text = text[:-1]
    return text


def place_file(source: Path, target: Path, how: str) -> None:
    """Links, copies or moves a file; `target` is complete as soon as it exists."""
    with storage.disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            target.symlink_to(source)
            return
        if how == "move":
            try:
                source.rename(target)
                return
            except OSError:  # on another disk
                pass
        unfinished = target.with_name(f"{storage.TEMPORARY}{os.getpid()}")
        try:
            shutil.copy2(source, unfinished)
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
        if how == "move":
            source.unlink()


def journal_of(into: Path) -> list[dict[str, Any]]:
    """The journal's lines, its head first. An incomplete last line is skipped: its file was not placed yet.
    Raises ValueError: a line that `must sort` does not write, for example about a file outside the folder."""
    file = into / JOURNAL_FILE
    if not file.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        names = LINE_FIELDS if lines else HEAD_FIELDS
        valid = isinstance(line, dict) and all(isinstance(line.get(name), str) for name in names)
        require(valid, f"{file}: line {number} is damaged; it says which image is where: restore this file")
        if lines and line["from"]:
            safe_relative_path(line["to"], f"{file}: line {number}")
        lines.append(line)
    return lines


def read_journal(into: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{image: line} of an earlier run. Raises ValueError: that run had other labels or parameters."""
    lines = journal_of(into)
    require(
        not lines or {name: lines[0].get(name) for name in head} == head,
        f"--into {into}: holds images that were sorted from other labels or in another way; take them back first: must "
        f"sort --undo --into {into}",
    )
    return {line["image"]: line for line in lines if line["from"]}


def undo(into: Path) -> Outcome:
    """Undoes the journal. A file that was changed since, or whose original path is in use, stays, and is logged."""
    lines = journal_of(into)
    require(bool(lines), f"--into {into}: nothing was sorted into it by must sort")
    how, done, remaining = lines[0]["how"], 0, []
    for line in [line for line in lines if line["from"]]:
        source, target = Path(line["from"]), into / line["to"]
        if not os.path.lexists(target):
            continue
        if not undo_file(source, target, how):
            remaining.append(line["to"])
            continue
        done += 1
        if not any(target.parent.iterdir()):
            target.parent.rmdir()
    for name in remaining:
        logger.info(printable(f"{into / name}: stays: it was changed, or its old place is taken"))
    if not remaining:
        (into / JOURNAL_FILE).unlink()
        if not any(into.iterdir()):
            into.rmdir()
    logger.info(f"{done} images taken back from {into} ({how})")
    return Outcome(done, len(remaining))


def undo_file(source: Path, target: Path, how: str) -> bool:
    """Moves or deletes one file; False if that would lose data."""
    if how == "move":
        if os.path.lexists(source):
            return False
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(target, source)
        return True
    unchanged = target.is_symlink() and target.readlink() == source
    if how == "copy":
        unchanged = not target.is_symlink() and source.is_file() and filecmp.cmp(source, target, shallow=False)
    if unchanged:
        target.unlink()
    return unchanged
