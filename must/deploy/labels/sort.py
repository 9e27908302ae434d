"""The stage `must sort`: images into a folder a class, as links, copies, or moved; no two become one; can be undone.

A journal in the folder, a line before each file is placed, says what came from where: a run that was stopped goes on,
and `--undo` takes back.
"""

import filecmp
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import JOURNAL_FILE
from must.base.names import below
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import CONTROLS, NONE_OF_THESE, brief, printable
from must.config.labels import SortConfig
from must.deploy.labels.formats import file_in, read_labels

logger = logging.getLogger(__name__)

LONGEST_FILE_NAME = 200  # bytes of a file's name
HEAD_FIELDS, LINE_FIELDS = ("from", "labels", "how"), ("from", "to", "image")  # texts of a line of the journal


@dataclass(frozen=True)
class Outcome:
    """`placed` images, or taken back; `missing`: that are not there any more, or were changed and so left alone."""

    placed: int
    missing: int


def sort(config: SortConfig) -> Outcome:
    """Sorts, or takes back; prints what came of it.
    Raises ValueError: no labels, none of the images is there, or the folder was sorted from other labels."""
    into = storage.local(config.into)
    require(not into.exists() or into.is_dir(), f"--into {config.into}: is a file")
    return take_back(into) if config.undo else place_all(config, into)


def place_all(config: SortConfig, into: Path) -> Outcome:
    labels = [one for one in read_labels(config.labels) if not one.unsure and (one.label or not config.named_only)]
    require(bool(labels), f"--labels {config.labels}: holds no labels")
    found = {one.image: path for one in labels if (path := file_of(one.image, config.root))}
    first = next((one.image for one in labels if one.image not in found), "")
    require(
        bool(found) or any(line["from"] for line in journal_of(into)),
        f"--labels {config.labels}: none of its {len(labels)} images is there, {brief(first)} for one; --root says "
        "which folder the names are below",
    )
    head = {
        "labels": storage.sha256_of(storage.local(file_in(config.labels))),
        "how": config.how,
        "abstain": config.abstain,
    } | ({"picked": True} if any(one.picked for one in labels) else {})
    before = read_journal(into, head)
    folders = Folders(into, [one.label for one in labels])
    into.mkdir(parents=True, exist_ok=True)
    placed, missing, filled = 0, 0, set[Path]()
    with (
        (into / JOURNAL_FILE).open("a", encoding="utf-8") as journal,
        bar(total=len(labels), desc="sort", leave=False) as shown,
    ):
        if not before and not journal.tell():
            journal.write(json.dumps({"from": "", **head}) + "\n")
        for one in labels:
            shown.update()
            source, line = found.get(one.image), before.get(one.image)
            if line is None:
                if source is None:
                    missing += 1
                    continue
                unsure = one.probability is not None and one.probability < config.abstain
                target = folders.place(None if unsure else one.label, source.absolute())
                line = {"from": str(source.absolute()), "to": str(target.relative_to(into)), "image": one.image}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            target = into / line["to"]
            if not os.path.lexists(target):
                put(Path(line["from"]), target, config.how)
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
    """The local file of an image, by its name alone or below `root`; None where the name is an address."""
    if "://" in image and not image.startswith("file://"):
        return None
    names = [storage.join(root, image)] if root else []
    for name in [*names, image]:
        for spelt in (name, unescaped(name)):
            if not storage.is_remote(spelt) and storage.local(spelt).is_file():
                return storage.local(spelt)
    return None


def unescaped(name: str) -> str:
    r"""A name with bytes that are no UTF-8 or control characters: files of labels hold ``\udcXX`` and ``\xXX``."""
    name = re.sub(r"\\udc([0-9a-f]{2})", lambda found: chr(0xDC00 + int(found[1], 16)), name)
    for code, written in CONTROLS.items():
        name = name.replace(written, chr(code))
    return name


class Folders:
    """A folder a class, and a place in it for each file that no other file has."""

    def __init__(self, into: Path, classes: list[str | None]) -> None:
        self.into = into
        self.names: dict[str | None, str] = {}
        self.taken: set[str] = set()
        for name in sorted({one for one in classes if one is not None}):
            self.names[name] = self.free_name(safe(name), self.names.values())
        self.none = self.free_name(NONE_OF_THESE, self.names.values())
        if None in classes:
            self.names[None] = self.none

    @staticmethod
    def free_name(name: str, taken: Any) -> str:
        """The name, or the first of NAME (2), NAME (3) ... that differs from all others by more than upper case."""
        others, number, found = {one.casefold() for one in taken}, 1, name
        while found.casefold() in others:
            number += 1
            found = f"{name} ({number})"
        return found

    def place(self, label: str | None, source: Path) -> Path:
        """A new path for a file: its own name, with those of its folders before it where there is one already."""
        folder = self.into / self.names.setdefault(label, self.none)
        parents = [part for part in source.parent.parts if part.strip("/\\")]
        stem, ending = source.stem, source.suffix
        names = ["-".join([*parents[len(parents) - deep :], source.name]) for deep in range(min(len(parents), 3) + 1)]
        number = 1
        while True:
            name = names.pop(0) if names else f"{stem} ({number})"[: LONGEST_FILE_NAME - len(ending)] + ending
            number += not names
            target = folder / name
            key = str(target).casefold()
            if len(os.fsencode(name)) <= LONGEST_FILE_NAME and key not in self.taken and not os.path.lexists(target):
                self.taken.add(key)
                return target


def safe(name: str) -> str:
    """A class as the name of a folder."""
    text = "".join("_" if one in '/\\:*?"<>|' or not one.isprintable() else one for one in name).strip(" .")
    while len(text.encode("utf-8", "replace")) > LONGEST_FILE_NAME:
        text = text[:-1]
    return text or "_"


def put(source: Path, target: Path, how: str) -> None:
    """Places a file; what has its name is whole."""
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
    """The journal's lines, its head first; a last line that was cut off has placed nothing.
    Raises ValueError: a line that `must sort` does not write, such as one of a file outside the folder."""
    file = into / JOURNAL_FILE
    if not file.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        known = HEAD_FIELDS if not lines else LINE_FIELDS
        ours = isinstance(line, dict) and all(isinstance(line.get(name), str) for name in known)
        require(ours, f"{file}: line {number} is damaged; it says which image is where: restore this file")
        if lines and line["from"]:
            below(line["to"], f"{file}: line {number}")
        lines.append(line)
    return lines


def read_journal(into: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By image: what an earlier run of the same labels has placed, or was about to. Raises ValueError: of others."""
    lines = journal_of(into)
    require(
        not lines or {name: lines[0].get(name) for name in head} == head,
        f"--into {into}: holds images that were sorted from other labels or in another way; take them back first: must "
        f"sort --undo --into {into}",
    )
    return {line["image"]: line for line in lines if line["from"]}


def take_back(into: Path) -> Outcome:
    """Undoes what the journal says; a file that was changed since, or whose old place is taken, stays and is named."""
    lines = journal_of(into)
    require(bool(lines), f"--into {into}: nothing was sorted into it by must sort")
    how, done, left = lines[0]["how"], 0, []
    for line in [line for line in lines if line["from"]]:
        source, target = Path(line["from"]), into / line["to"]
        if not os.path.lexists(target):
            continue
        if not gone(source, target, how):
            left.append(line["to"])
            continue
        done += 1
        if not any(target.parent.iterdir()):
            target.parent.rmdir()
    for name in left:
        logger.info(printable(f"{into / name}: stays: it was changed, or its old place is taken"))
    if not left:
        (into / JOURNAL_FILE).unlink()
        if not any(into.iterdir()):
            into.rmdir()
    logger.info(f"{done} images taken back from {into} ({how})")
    return Outcome(done, len(left))


def gone(source: Path, target: Path, how: str) -> bool:
    """Takes one file back; False if that would lose something."""
    if how == "move":
        if os.path.lexists(source):
            return False
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(target, source)
        return True
    ours = target.is_symlink() and target.readlink() == source
    if how == "copy":
        ours = not target.is_symlink() and source.is_file() and filecmp.cmp(source, target, shallow=False)
    if ours:
        target.unlink()
    return ours
