"""answers.jsonl: what people said about pictures, a JSON object a line, never rewritten.

    {"image": "a.jpg", "sha256": "...", "label": "cat", "who": "ann", "when": "2026-01-01T12:00:00+00:00", ...}

`label` is a class name, or null where the picture shows none of the classes; `"unsure": true` stands in its place where
the person could not tell, and `"undone": true` beside that where an answer was taken back. The last line about a
picture counts. A picture is known by the sha256 of its file, so answers stay valid for another model, and may come from
another program. `"picked": true` says that the picture was not drawn at random: such an answer teaches, and measures
nothing; `how` says how it came to be asked: random, doubtful, grid (a class's pictures side by side), similar (to one
that was asked), chosen (looked at again).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import ANSWERS_FILE
from must.base.names import SHA256, of_form
from must.base.parameters import require
from must.base.text import brief

LARGEST = 1 << 16  # bytes of a line
TRIES = 5  # to add answers while others do


@dataclass(frozen=True)
class Answer:
    sha256: str
    label: str | None  # None: none of the classes, or unsure
    unsure: bool = False
    image: str = ""
    who: str = ""
    when: str = ""
    picked: bool = False


def place(uri: str) -> str:
    """The file of answers, of its folder or as it is."""
    return uri if uri.endswith(".jsonl") else storage.join(uri, ANSWERS_FILE)


def read_answers(uri: str, classes: list[str] | None = None) -> dict[str, Answer]:
    """sha256 -> the answer that counts. No file: no answers. What a killed program left of a last line is
    left out.

    Raises:
        ValueError: a line is no answer, or names a class that is none of `classes`; says which.
    """
    try:
        data = storage.read_bytes(place(uri))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    known = None if classes is None else set(classes)
    found: dict[str, Answer] = {}
    *lines, last = data.split(b"\n")
    for number, line in enumerate([*lines, last] if whole(last) else lines, 1):
        if not line.strip():
            continue
        try:
            require(len(line) <= LARGEST, "is too long")
            entry = json.loads(line)
            sha256 = of_form(SHA256, entry["sha256"], "sha256")
            answer = parsed(entry, sha256)
            require(
                answer is None or answer.label is None or known is None or answer.label in known,
                f"{brief(entry.get('label'))} is none of the model's classes",
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {brief(str(error))}"
            raise UserError(f"{place(uri)}, line {number}: {why}") from None
        found.pop(sha256, None)  # so that they are in the order in which they were given
        if answer is not None:
            found[sha256] = answer
    return found


def parsed(entry: dict[str, Any], sha256: str) -> Answer | None:
    """None: the answer was taken back."""
    if entry.get("undone") is True:
        return None
    unsure = entry.get("unsure") is True
    label = None if unsure else entry["label"]
    require(label is None or isinstance(label, str), "label must be a class name or null")
    texts = {name: str(entry.get(name, "")) for name in ("image", "who", "when")}
    picked = bool(entry.get("picked")) or "position" in entry  # of must 0.1, which drew by weight
    return Answer(sha256, label, unsure, **texts, picked=picked)


def whole(line: bytes) -> bool:
    """Whether a line that has no end is one all the same: no beginning of an object is an object."""
    return storage.object_or_none(line, dict) is not None


def append(path: Path, *entries: dict[str, Any]) -> None:
    """Adds a line an entry, and returns when all are on the disk. What a killed program left of a line is taken away
    first: it was confirmed to nobody."""
    line = b"".join(json.dumps(entry, ensure_ascii=True).encode() + b"\n" for entry in entries)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        begin = max(size - LARGEST, 0)
        tail = os.pread(descriptor, size - begin, begin)
        last = tail[tail.rfind(b"\n") + 1 :]
        if last and whole(last):
            line = b"\n" + line
        elif last:
            os.ftruncate(descriptor, size - len(last))
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add(uri: str, data: bytes) -> int:
    """Puts the lines of `data` that are not there yet at the end of the file `uri`; returns how many those are.

    Raises:
        ValueError: others wrote there all the time.
    """
    for _ in range(TRIES):
        before, token = storage.read_versioned(uri)
        lines = (before or b"").splitlines()
        known = set(lines)
        new = [line for line in data.splitlines() if line.strip() and line not in known and whole(line)]
        try:
            storage.write_bytes(uri, b"".join(line + b"\n" for line in [*lines, *new]), token)
        except storage.ConflictError:
            continue
        return len(new)
    raise UserError(f"{uri}: write conflict; try again")
