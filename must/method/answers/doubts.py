"""doubtful.json: of each class the pictures that a model is least and most sure of, for a person to correct."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np

from must.base import storage
from must.base.parameters import require
from must.base.text import Rows, brief, cell, encoded
from must.method.answers.book import Answer
from must.method.answers.plan import Picture, checked_pictures

FILE, RELABELLED, FORMAT = "doubtful.json", "relabelled.csv", 1
MOST = 2_000  # pictures
SHOWN = 2  # names that a picture is shown with: the model's first and second


@dataclass(frozen=True)
class Doubts:
    """A picture's `chance` is the model's probability of its first class; nothing is estimated from it."""

    model_sha256: str
    shards: str
    index_sha256: str
    split: str
    classes: list[str]
    pictures: list[Picture]
    format: int = FORMAT

    @cached_property
    def at(self) -> dict[str, int]:
        """Class name -> number."""
        return {name: number for number, name in enumerate(self.classes)}

    def names(self, position: int) -> list[str]:
        """The model's first and second class for a picture."""
        return [self.classes[number] for number in dict.fromkeys(self.pictures[position].classes)]

    def relabelled(self, answers: dict[str, Answer]) -> list[tuple[Picture, Answer]]:
        """The pictures to which people give another class than the model, or none of the classes."""
        pairs = [(picture, answers.get(picture.sha256)) for picture in self.pictures]
        return [
            (picture, answer)
            for picture, answer in pairs
            if answer and not answer.unsure and answer.label != self.classes[picture.classes[0]]
        ]


def order_of(labels: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Int64 [at most MOST]: of each class in turn the image that the model is least sure of, the one it is surest of,
    the second least, and so on. `labels` [N], `sure` [N]; no image twice."""
    queues = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        places = places[np.argsort(sure[places], kind="stable")]
        half = -(-len(places) // 2)
        both = zip_longest(places[:half], places[half:][::-1])
        queues.append([place for pair in both for place in pair if place is not None])
    rounds = zip_longest(*queues)
    return np.array([place for turn in rounds for place in turn if place is not None][:MOST], np.int64)


def save_doubts(doubts: Doubts, folder: str) -> None:
    storage.write_bytes(storage.join(folder, FILE), json.dumps(asdict(doubts), separators=(",", ":")).encode())


def load_doubts(folder: str) -> Doubts:
    """Raises ValueError: it is damaged, or of another version."""
    uri = storage.join(folder, FILE)
    try:
        content = json.loads(storage.read_bytes(uri))
        require(content.keys() == {f.name for f in fields(Doubts)} and content["format"] == FORMAT, "other fields")
        require(all(isinstance(name, str) for name in content["classes"]), "classes")
        return Doubts(**content | {"pictures": checked_pictures(content["pictures"], SHOWN, len(content["classes"]))})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{uri} ({brief(str(error))}): is damaged; delete it, and it is made again") from None


def save_relabelled(doubts: Doubts, answers: dict[str, Answer], folder: str) -> int:
    """Writes relabelled.csv anew: image, the model's class, and what a person says instead. Returns how many rows."""
    rows = Table()
    rows.add("image", "model", "label", "who", "when", "sha256")
    found = doubts.relabelled(answers)
    for picture, answer in found:
        texts = picture.image, doubts.classes[picture.classes[0]], answer.label or "", answer.who, answer.when
        rows.add(*map(cell, texts), picture.sha256)
    storage.write_bytes(storage.join(folder, RELABELLED), encoded(rows.text))
    return len(found)


class Table:
    """Rows of a CSV file, in memory."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.add = Rows(self).add

    def write(self, text: str, /) -> None:
        self.parts.append(text)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def progress(doubts: Doubts, answers: dict[str, Answer]) -> dict[str, Any]:
    """What the page tells."""
    done = sum(picture.sha256 in answers for picture in doubts.pictures)
    other = len(doubts.relabelled(answers))
    share = f"{other:,} of them name another class than the model"
    return {
        "answers": done,
        "of": len(doubts.pictures),
        "sure": done / max(len(doubts.pictures), 1),
        "text": f"{share}; {len(doubts.pictures) - done:,} pictures are left.",
    }
