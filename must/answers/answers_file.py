"""answers.jsonl: people's answers about pictures, one JSON object per line, append-only.

    {"image": "a.jpg", "sha256": "...", "label": "cat", "sampled": "random", "model": "dog", "when": "..."}

`label` is a class name, or null where the picture shows none of the classes; `"unsure": true` replaces it where the
person could not tell. The last line about a picture counts. `"undone": WHEN` takes back the picture's answer with that
`when`: the answer before it counts again. A picture is identified by the sha256 of its file, so answers stay valid for
another model, and may come from another program.

    {"classes": ["cat", "dog"]}

Such a line says which classes the answers "none of the classes" after it are about: where a class was added later,
they are asked again.

`model` is the class that the picture's label named before the answer; null for none of the classes.

`sampled` is how the picture was chosen: random (drawn at random), screen (with others of the same label), left (alone,
as its label is not sure), folder (alone, as it seems to lie in the wrong folder), again (opened again by the person),
added (a correction made elsewhere). Only answers about pictures drawn at random measure accuracies; all of them correct
labels. `"drawn": true`: the answer came before the picture's turn in the random order, and measures since then.

    {"sha256": "...", "noticed": true}

Such a line says that a person was shown the picture on a screen under a wrong label, as a test, and whether they
noticed it.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from must.answers.population import find_population_file
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import SHA256, match_form, require
from must.base.text import compose, encode_utf8
from must.config.work import ANSWERS_FILE

RANDOM, SCREEN, LEFT, FOLDER, AGAIN, ADDED = "random", "screen", "left", "folder", "again", "added"
# In place of class numbers: none of the classes; an answer that does not fit the classes; "cannot tell"; no answer.
NO_CLASS, OUTDATED, UNSURE, OPEN = -1, -2, -3, -4
LARGEST_LINE = 1 << 20  # bytes
NO_ANSWER = "is not the JSON object of an answer, with sha256 and label; delete the line, or restore an earlier copy"


@dataclass(frozen=True)
class Answer:
    """`sampled` is '' where the line does not say it: then nothing is measured with it."""

    sha256: str
    label: str | None  # None: none of the classes, or unsure
    unsure: bool = False
    image: str = ""
    who: str = ""
    when: str = ""
    sampled: str = ""
    model: str | None = ""  # the class by its label before the answer; "" where the line does not say it
    drawn: bool = False
    noticed: tuple[bool, ...] = ()  # of each time when it was shown under a wrong label
    listed: frozenset[str] | None = None  # the classes that "none of the classes" is about; None: not known

    def fits(self, classes: Iterable[str]) -> bool:
        """Whether it says something of a list of classes: its class is there, or none of them is its class."""
        if self.label is not None:
            return self.label in classes
        return self.unsure or self.listed is None or self.listed.issuperset(classes)

    def find_number(self, class_numbers: dict[str, int]) -> int:
        """Of its class; NO_CLASS for none of the classes, OUTDATED if it does not fit the classes, or UNSURE."""
        if self.unsure:
            return UNSURE
        if not self.fits(class_numbers):
            return OUTDATED
        return NO_CLASS if self.label is None else class_numbers[self.label]

    @property
    def measures(self) -> bool:
        """Whether the picture was drawn at random."""
        return self.drawn or self.sampled == RANDOM

    @property
    def corrects(self) -> bool:
        """Whether its label was another one before, as far as is known."""
        return self.unsure or self.model != self.label

    @property
    def line(self) -> dict[str, Any]:
        """The JSON object of its line."""
        content: dict[str, Any] = {"unsure": True} if self.unsure else {"label": self.label}
        optional = {"sampled": self.sampled, "model": self.model, "drawn": self.drawn or ""}
        optional |= {"who": self.who, "when": self.when}
        return {"image": self.image, "sha256": self.sha256} | content | {k: v for k, v in optional.items() if v != ""}


def find_answers_file(uri: str) -> str:
    """The file of answers in a folder; the URI of a file is returned as it is."""
    return uri if uri.endswith(".jsonl") else storage.join(uri, ANSWERS_FILE)


def hash_answers(uri: str) -> str:
    """The sha256 of the file of answers, and of `find_population_file` if it is there; "" if there are no answers."""
    file = find_answers_file(uri) if uri else ""
    if not file or not storage.exists(file):
        return ""
    files = [file, *([population] if storage.exists(population := find_population_file(file)) else [])]
    return hashlib.sha256(b"".join(map(storage.read_bytes, files))).hexdigest()


def read_answers(uri: str, classes: list[str] | None = None) -> dict[str, Answer]:
    """sha256 -> the answer that counts. No file: no answers. With `classes`, without those of a class that is gone."""
    return {sha256: answers[-1] for sha256, answers in read_history(uri, classes).items()}


def read_history(uri: str, classes: list[str] | None = None) -> dict[str, list[Answer]]:
    """sha256 -> its answers that were not taken back, the one that counts last; in the order of their last lines. An
    incomplete last line, of a killed program, is skipped. With `classes`, images whose answer does not fit them are
    left out: classes are added, removed and renamed, and the answers stay in the file."""
    try:
        data = storage.read_bytes(find_answers_file(uri))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    history, listed = dict[str, list[Answer]](), None
    *lines, last = data.split(b"\n")
    for number, line in enumerate([*lines, last] if is_object(last) else lines, 1):
        if not line.strip():
            continue
        try:
            require(len(line) <= LARGEST_LINE, "is too long")
            entry = json.loads(line)
            if is_list(entry):
                names = entry["classes"]
                require(names is None or isinstance(names, list), "classes must be a list of names")
                listed = None if names is None else frozenset(compose(str(name)) for name in names)
                continue
            sha256 = match_form(SHA256, entry["sha256"], "sha256")
            answers = history.pop(sha256, [])  # so that the order is that of the last answers
            if "undone" in entry:
                when = entry["undone"]
                require(bool(when) and isinstance(when, str), "undone must be a time")
                answers = remove_answer(answers, when)
            elif "noticed" in entry:
                answers = [*answers[:-1], *(add_check(answer, entry["noticed"] is True) for answer in answers[-1:])]
            else:
                noticed = answers[-1].noticed if answers else ()
                answers = [*answers, replace(parse_answer(entry, sha256, listed), noticed=noticed)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = str(error) if isinstance(error, UserError) else NO_ANSWER
            raise UserError(f"{find_answers_file(uri)}, line {number}: {problem}") from None
        if answers:
            history[sha256] = answers
    known = set(classes or ())
    return {sha256: answers for sha256, answers in history.items() if classes is None or answers[-1].fits(known)}


def remove_answer(answers: list[Answer], when: str) -> list[Answer]:
    """The answers without the one that was given at `when`, and without its repetition as a drawn one."""
    return [answer for answer in answers if answer.when != when]


def add_check(answer: Answer, noticed: bool) -> Answer:
    return replace(answer, noticed=(*answer.noticed, noticed))


def parse_answer(entry: dict[str, Any], sha256: str, listed: frozenset[str] | None) -> Answer:
    unsure = entry.get("unsure") is True
    label = None if unsure else entry["label"]
    require(label is None or isinstance(label, str), "label must be a class name or null")
    label = label and compose(label)
    image, who, when, sampled = (str(entry.get(name, "")) for name in ("image", "who", "when", "sampled"))
    model = entry.get("model", "")
    model, drawn = model if model is None else str(model), entry.get("drawn") is True
    return Answer(sha256, label, unsure, image, who, when, sampled, model, drawn, listed=listed)


def is_list(entry: dict[str, Any]) -> bool:
    """Whether an object says which classes the answers after it are about."""
    return "classes" in entry and "sha256" not in entry


def is_object(line: bytes) -> bool:
    """Whether a line is a complete JSON object, even without a newline."""
    return storage.parse_object_or_none(line, dict) is not None


def append_answers(path: Path, classes: list[str], answers: Iterable[Answer]) -> None:
    """As `append`; says which `classes` they are about, if that is needed and not said yet; null where the list does
    not fit a line."""
    new = list(answers)
    lines = [answer.line for answer in new]
    if any(answer.label is None and not answer.unsure for answer in new):
        before = path.read_bytes().split(b"\n") if path.exists() else []
        said = [
            content for line in before if (content := storage.parse_object_or_none(line, dict)) and is_list(content)
        ]
        fits = len(json.dumps({"classes": classes})) < LARGEST_LINE
        now, earlier = classes if fits else None, said[-1]["classes"] if said else None
        lines = [*([] if now == earlier else [{"classes": now}]), *lines]
    append(path, *lines)


def encode_entry(entry: dict[str, Any]) -> bytes:
    return encode_utf8(json.dumps(entry, ensure_ascii=False)) + b"\n"


def rename_answers(uri: str, names: dict[str, str]) -> int:
    """Gives the answers, what the labels named before them, and the lists of classes, of a folder on this machine new
    names, {old: new}; two may become one. Returns the number of answers. Lines that are no objects stay."""
    file, count, lines = Path(find_answers_file(uri)), 0, list[bytes]()

    def find(name: Any) -> Any:
        return names.get(compose(name), name) if isinstance(name, str) else name

    before = file.read_bytes().splitlines(keepends=True)
    for line in before:
        entry = storage.parse_object_or_none(line, dict) or {}
        if is_list(entry) and isinstance(entry["classes"], list):
            renamed = {"classes": list(dict.fromkeys(find(str(one)) for one in entry["classes"]))}
        else:
            renamed = {name: find(entry[name]) for name in ("label", "model") if name in entry}
            count += "label" in entry and renamed["label"] != entry["label"]
        changes = any(entry[name] != value for name, value in renamed.items())
        lines.append(encode_entry(entry | renamed) if changes else line)
    if lines != before:
        storage.write_bytes(str(file), b"".join(lines))
    return count


def append(path: Path, *entries: dict[str, Any]) -> None:
    """Appends one line per entry, and returns when all are on the disk. An incomplete last line of a killed program is
    removed first: nobody was told that it was saved. Raises OSError: the disk is full; then none was appended."""
    line = b"".join(encode_entry(entry) for entry in entries)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        begin = max(size - LARGEST_LINE, 0)
        tail = os.pread(descriptor, size - begin, begin)
        last = tail[tail.rfind(b"\n") + 1 :]
        if last and is_object(last):
            line = b"\n" + line
        elif last:
            size -= len(last)
            os.ftruncate(descriptor, size)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
