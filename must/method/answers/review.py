"""review.json: the pictures that people are asked about, in their order. A function of the model, the images and a
seed, written once.

In the order `random` every picture is as likely as any other to be among the first n, so that answers measure without
bias; and the first n are spread over the refined labels, so that they teach each class. In the order `doubtful` come
the pictures that the model is least sure of; nothing can be measured by those.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.names import SHA256, of_form
from must.base.parameters import require
from must.base.text import counted
from must.method.answers.book import Answer, read_answers
from must.method.answers.estimate import Measured

REVIEW_FILE = "review.json"
IMAGES_FILE = "review.safetensors"  # beside it once all images were looked at
FORMAT = 2
FIRST_IMAGES = 128  # images, drawn at random, that questions begin with
RANDOM, DOUBTFUL = "random", "doubtful"
NO_CLASS = -1  # a picture that shows none of the classes
ZERO_SHOT, MODEL, REFINED = range(3)  # places in a picture's `classes`


@dataclass(frozen=True)
class Picture:
    """`number`: in the split; `classes`: numbers of the classes that zero-shot, the model and the refined labels give
    it; `confidence`: the model's; `likely`: the classes by falling probability, ten at most; `similar`: numbers of the
    most similar pictures."""

    number: int
    image: str
    sha256: str
    classes: tuple[int, int, int]
    confidence: float
    likely: tuple[int, ...] = ()
    similar: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Review:
    model_sha256: str  # of model.safetensors
    shards: str
    index_sha256: str
    split: str
    classes: list[str]
    order: str  # RANDOM or DOUBTFUL
    images: int  # of which the pictures were chosen
    pictures: list[Picture]
    format: int = FORMAT

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Class name -> number."""
        return {name: number for number, name in enumerate(self.classes)}

    def save(self, folder: str) -> None:
        storage.write_bytes(storage.join(folder, REVIEW_FILE), json.dumps(asdict(self), separators=(",", ":")).encode())

    @classmethod
    def load(cls, folder: str, flag: str = "--answers") -> Self:
        """Raises ValueError: there is none, it is damaged, or of another version."""
        uri = storage.join(folder, REVIEW_FILE)
        damaged = f"{uri}: is damaged or of another version; delete it, and `must review` makes it again"
        try:
            return storage.read_object(uri, cls.parse, UserError(damaged))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{flag} {folder}: no {REVIEW_FILE} there; it is what `must review` writes") from None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Raises any of `storage.read_object`'s errors: not what `save` writes."""
        require(content.keys() == {f.name for f in fields(cls)} and content["format"] == FORMAT, "other fields")
        review = cls(**content | {"pictures": [parse_picture(entry) for entry in content["pictures"]]})
        require(all(isinstance(name, str) for name in review.classes), "classes")
        for picture in review.pictures:
            require(len(picture.classes) == 3, "a picture's classes")
            require(max(*picture.classes, *picture.likely) < len(review.classes), "a picture's classes")
        return review

    def require(self, classes: list[str], index_sha256: str, flag: str) -> None:
        """Raises ValueError: it is about other classes, or about another revision of the shards; begins with `flag`."""
        require(self.classes == classes, f"{flag}: is a review of a model with other classes; give its own model")
        require(
            self.index_sha256 == index_sha256,
            f"{flag}: is a review of another revision of the shards; delete its {REVIEW_FILE} and run `must review` "
            "again; answers are kept",
        )

    def answers(self, folder: str) -> dict[str, Answer]:
        """sha256 -> the answer that counts, of this review's pictures. Raises ValueError: as `read_answers`."""
        asked = {picture.sha256 for picture in self.pictures}
        return {key: one for key, one in read_answers(folder, self.classes).items() if key in asked}

    def truth(self, answers: dict[str, Answer], drawn: bool = False) -> tuple[list[Picture], np.ndarray]:
        """(the pictures that somebody could answer, int64 [A] of their class numbers, NO_CLASS where it is none).

        Args:
            drawn: only answers about pictures that were drawn at random, which measure. All of those count, whatever
                is left out between them: people skip few pictures, and "cannot tell" is not counted.
        """
        pairs = [(picture, answers.get(picture.sha256)) for picture in self.pictures]
        sure = [(picture, one) for picture, one in pairs if one and not one.unsure and not (drawn and one.picked)]
        labels = [NO_CLASS if one.label is None else self.number_of[one.label] for _, one in sure]
        return [picture for picture, _ in sure], np.array(labels, np.int64)

    def measured(self, answers: dict[str, Answer]) -> Measured | None:
        """What the answers about pictures that were drawn at random measure; None where there are none."""
        pictures, labels = self.truth(answers, drawn=True)
        if not pictures:
            return None
        right = np.array([picture.classes for picture in pictures]) == labels[:, None]
        return Measured.of(right[:, ZERO_SHOT], right[:, MODEL], right[:, REFINED])

    def text(self, answers: dict[str, Answer]) -> str:
        """What the answers measure, and how many do not. The same in every place that tells it."""
        if not answers:
            return "No answers yet."
        measured, given = self.measured(answers), answers.values()
        unsure, picked = sum(one.unsure for one in given), sum(one.picked and not one.unsure for one in given)
        parts = [f"{measured.text()}."] if measured else []
        if picked:
            parts.append(f"{counted(picked, 'answer')} for correcting labels only: not drawn at random.")
        if unsure:
            parts.append(f"{counted(unsure, 'answer')} “cannot tell”.")
        return " ".join(parts)

    def relabelled(self, answers: dict[str, Answer]) -> list[tuple[Picture, Answer]]:
        """The pictures to which people give another class than the model, or none of the classes."""
        return [
            (picture, answers[picture.sha256])
            for picture, label in zip(*self.truth(answers), strict=True)
            if label != picture.classes[MODEL]
        ]


def parse_picture(entry: dict[str, Any]) -> Picture:
    lists = {name: tuple(entry[name]) for name in ("classes", "likely", "similar")}
    picture = Picture(**entry | lists)
    of_form(SHA256, picture.sha256, "sha256")
    numbers = (picture.number, *picture.classes, *picture.likely, *picture.similar)
    require(all(type(number) is int and number >= 0 for number in numbers), "a picture's numbers")
    require(isinstance(picture.image, str), "a picture's name")
    require(0 <= picture.confidence <= 1, "a picture's confidence")
    return picture


def random_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Int64 [N], images in the order in which they are asked.

    The images, sorted by their predicted class `labels` [N] and at random within a class, are drawn by a van der Corput
    sequence with a random start: each image is as likely as any other, and any first n are spread over the classes.
    """
    images = len(labels)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(images)
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    bits = max(1, int(np.ceil(np.log2(max(images, 2)))))
    numbers = np.arange(1 << bits, dtype=np.int64)
    mirrored = np.zeros_like(numbers)
    for bit in range(bits):
        mirrored |= ((numbers >> bit) & 1) << (bits - 1 - bit)
    points = (mirrored / (1 << bits) + rng.random()) % 1
    places = (points * images).astype(np.int64).clip(0, images - 1)
    _, first = np.unique(places, return_index=True)
    return ordered[places[np.sort(first)]]


def doubtful_order(confidence: np.ndarray) -> np.ndarray:
    """Int64 [N]: the images that the model is least sure of first. `confidence` [N]."""
    return np.argsort(confidence, kind="stable")


def fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
