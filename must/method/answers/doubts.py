"""doubtful.json: of each class the pictures that a model is least and most sure of, for a person to correct."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from must.base import storage
from must.base.text import cell, csv_of
from must.method.answers.book import Answer
from must.method.answers.questions import MOST, Picture, Questions

RELABELLED = "relabelled.csv"
SHOWN = 2  # names that a picture is shown with: the model's first and second


@dataclass(frozen=True, kw_only=True)
class Doubts(Questions):
    """The candidates are the model's first and second class. A picture's `chance` is the model's probability of the
    first; nothing is estimated from it."""

    FILE = "doubtful.json"
    candidates = SHOWN

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


def save_relabelled(doubts: Doubts, answers: dict[str, Answer], folder: str) -> int:
    """Writes relabelled.csv anew: image, the model's class, and what a person says instead. Returns how many rows."""
    rows = [["image", "model", "label", "who", "when", "sha256"]]
    for picture, answer in doubts.relabelled(answers):
        texts = picture.image, doubts.classes[picture.classes[0]], answer.label or "", answer.who, answer.when
        rows.append([*map(cell, texts), picture.sha256])
    storage.write_bytes(storage.join(folder, RELABELLED), csv_of(rows))
    return len(rows) - 1


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
