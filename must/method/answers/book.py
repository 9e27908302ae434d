"""answers.jsonl: people's answers about pictures, one JSON object per line, append-only.

    {"image": "a.jpg", "sha256": "...", "label": "cat", "who": "ann", "when": "2026-01-01T12:00:00+00:00", ...}

`label` is a class name, or null where the picture shows none of the classes; `"unsure": true` replaces it where the
person could not tell, with `"undone": true` besides where the person withdrew an answer. The last line about a picture
counts. A picture is identified by the sha256 of its file, so answers stay valid for another model, and may come from
another program. `"picked": true` marks a picture that was not drawn at random: such an answer corrects labels, and is
not used to measure; `how` is the way in which it was chosen: random, doubtful, grid (pictures of a class side by side),
similar (to an answered one), chosen (opened again by the person).
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
TRIES = 5  # to add answers while other programs do


@dataclass(frozen=True)
class Answer:
    sha256: str
    label: str | None  # None: none of the classes, or unsure
    unsure: bool = False
    image: str = ""
    who: str = ""
    when: str = ""
    picked: bool = False


def answers_file(uri: str) -> str:
    """The file of answers in a folder; the URI of a file is returned as it is."""
    return uri if uri.endswith(".jsonl") else storage.join(uri, ANSWERS_FILE)


def read_answers(uri: str, classes: list[str] | None = None) -> dict[str, Answer]:
    """sha256 -> the answer that counts. No file: no answers. An incomplete last line, of a killed program, is skipped.
    Raises ValueError: a line is not an answer, or names a class that is not in `classes`; the message has its
    number."""
    try:
        data = storage.read_bytes(answers_file(uri))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    known = None if classes is None else set(classes)
    answers: dict[str, Answer] = {}
    *lines, last = data.split(b"\n")
    for number, line in enumerate([*lines, last] if is_object(last) else lines, 1):
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
            problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {brief(str(error))}"
            raise UserError(f"{answers_file(uri)}, line {number}: {problem}") from None
        answers.pop(sha256, None)  # so that the order is that of the last answers
        if answer is not None:
            answers[sha256] = answer
    return answers


def parsed(entry: dict[str, Any], sha256: str) -> Answer | None:
    """None: the answer was withdrawn."""
    if entry.get("undone") is True:
        return None
    unsure = entry.get("unsure") is True
    label = None if unsure else entry["label"]
    require(label is None or isinstance(label, str), "label must be a class name or null")
    texts = {name: str(entry.get(name, "")) for name in ("image", "who", "when")}
    picked = bool(entry.get("picked")) or "position" in entry  # "position": of must 0.1, which drew by weight
    return Answer(sha256, label, unsure, **texts, picked=picked)


def is_object(line: bytes) -> bool:
    """Whether a line is a complete JSON object, even without a newline."""
    return storage.object_or_none(line, dict) is not None


def append(path: Path, *entries: dict[str, Any]) -> None:
    """Appends one line per entry, and returns when all are on the disk. An incomplete last line of a killed program is
    removed first: nobody was told that it was saved."""
    line = b"".join(json.dumps(entry, ensure_ascii=True).encode() + b"\n" for entry in entries)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        begin = max(size - LARGEST, 0)
        tail = os.pread(descriptor, size - begin, begin)
        last = tail[tail.rfind(b"\n") + 1 :]
        if last and is_object(last):
            line = b"\n" + line
        elif last:
            os.ftruncate(descriptor, size - len(last))
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add(uri: str, data: bytes) -> int:
    """Appends the lines of `data` that the file `uri` does not have yet; returns their number.
    Raises ValueError: other programs wrote to the file at every try."""
    for _ in range(TRIES):
        before, token = storage.read_versioned(uri)
        lines = (before or b"").splitlines()
        known = set(lines)
        new = [line for line in data.splitlines() if line.strip() and line not in known and is_object(line)]
        try:
            storage.write_bytes(uri, b"".join(line + b"\n" for line in [*lines, *new]), token)
        except storage.ConflictError:
            continue
        return len(new)
    raise UserError(f"{uri}: write conflict; try again")
