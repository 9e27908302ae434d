"""review.json: the pictures that people are asked about, in a random order. It depends on the model, the images and a
seed, and is written once.

Every picture is equally likely to be among the first n, so that answers measure without bias; and the first n are
spread over the refined labels, so that every class gets answers.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from must.base import storage
from must.base.parameters import make_record, require

REVIEW_FILE = "review.json"
FORMAT = 10


@dataclass(frozen=True)
class Picture:
    """`number`: in the split; `label`: class number of the label before any answer, -1 for none of the classes;
    `likely`: the classes by falling probability, ten at most."""

    number: int
    image: str
    sha256: str
    label: int
    likely: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Review:
    model_sha256: str  # of model.safetensors
    index_sha256: str
    split: str
    classes: list[str]
    pictures: list[Picture]  # in the order in which they are drawn at random
    format: int = FORMAT

    @cached_property
    def class_numbers(self) -> dict[str, int]:
        """Class name -> number."""
        return {name: number for number, name in enumerate(self.classes)}

    def save(self, folder: str) -> None:
        storage.write_bytes(storage.join(folder, REVIEW_FILE), json.dumps(asdict(self), separators=(",", ":")).encode())

    @classmethod
    def load(cls, folder: str) -> Self | None:
        """None: there is none, or it is damaged or of another version."""
        try:
            data = storage.read_bytes(storage.join(folder, REVIEW_FILE))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return storage.parse_object_or_none(data, cls.parse)

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        require(content.get("format") == FORMAT, "another version")
        return make_record(cls, content)


def draw_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Int64 [N]: the images in the order of the questions.

    The images, sorted by their predicted class `labels` [N] and at random within a class, are drawn by a van der Corput
    sequence with a random start: all images are equally likely, and any first n are spread over the classes."""
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
    positions = (points * images).astype(np.int64).clip(0, images - 1)
    _, first_index = np.unique(positions, return_index=True)
    return ordered[positions[np.sort(first_index)]]


def hash_picture(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
