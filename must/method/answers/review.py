"""review.json: the pictures that people are asked about, in two streams. It depends on the model, the images, a seed
and the earlier answers, and is written once.

Drawn at random: every picture is equally likely to be among the first n, so that answers measure without bias; and the
first n are spread over the refined labels, so that every class gets answers. By coverage: each is unlike those that are
answered (`order_by_coverage`), so that its answer teaches much; such answers do not measure accuracy.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import SHA256, make_record, match_form, require
from must.method.answers.answers_file import COVERAGE, RANDOM, Answer

REVIEW_FILE = "review.json"
FORMAT = 8
ZERO_SHOT, MODEL, REFINED = range(3)  # positions in a picture's `classes`


class QuestionMix(NamedTuple):
    """The first `random_first` questions are drawn at random; then one at random and `coverage` ones by coverage, in
    turn."""

    random_first: int
    coverage: int

    def stream(self, random: int, coverage: int) -> str:
        """RANDOM or COVERAGE: the kind of the next question after so many answers of each."""
        return COVERAGE if coverage < self.coverage * (random - self.random_first) else RANDOM


SCHEDULE = QuestionMix(random_first=20, coverage=2)
MOST_BY_COVERAGE = 500  # pictures that are ordered by coverage
COVERAGE_CANDIDATES = 20_000  # images to choose from; of more, so many evenly spread ones
COVERED = 4_000  # images whose coverage is summed; of more, so many evenly spread ones
BLOCK = 4_096  # images that are compared at a time
COVERAGE_BATCH = 64  # candidates whose gain is computed again at a time
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """`number`: in the split; `classes`: class numbers of the zero-shot model, the model and the refined labels;
    `confidence`: the model's; `likely`: the classes by falling probability, ten at most; `similar`: numbers of the
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
    pictures: list[Picture]  # in the order in which they are drawn at random
    coverage: list[int]  # numbers of pictures, in the order by coverage
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
        damaged = UserError(REVIEW_FILE)
        try:
            return storage.read_object(storage.join(folder, REVIEW_FILE), cls.parse, damaged)
        except UserError as error:
            if error is not damaged:
                raise
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        require(content.keys() == {f.name for f in fields(cls)} and content["format"] == FORMAT, "other fields")
        review = make_record(cls, content)
        require({*review.coverage} <= {picture.number for picture in review.pictures}, "the order by coverage")
        for picture in review.pictures:
            match_form(SHA256, picture.sha256, "sha256")
            numbers = (picture.number, *picture.classes, *picture.likely, *picture.similar)
            require(min(numbers) >= 0, "a picture's numbers")
            require(max(*picture.classes, *picture.likely) < len(review.classes), "a picture's classes")
            require(0 <= picture.confidence <= 1, "a picture's confidence")
        return review

    def relabelled(self, answers: dict[str, Answer]) -> list[tuple[Picture, Answer]]:
        """The pictures to which people gave another class than the model did, or none of the classes."""
        return [
            (picture, answer)
            for picture in self.pictures
            if (answer := answers.get(picture.sha256))
            and not answer.unsure
            and answer.find_number(self.class_numbers) != picture.classes[MODEL]
        ]


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


def order_by_coverage(
    vectors: Vectors, weight: NDArray[np.floating] | None, already: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Int64 [count] or fewer: the images that are least similar to those with an answer and to each other, best first.

    How well an image is covered is the largest cosine, cubed and at least 0, to an image with an answer. The next image
    is always the one that adds most to the sum over all images: greedy facility location, at least 63% as good as the
    best.

    Args:
        vectors: float32 [N, D], of length 1.
        weight: [N], what covering each image is worth; None: all the same.
        already: int64 [A], the images that have an answer.
        count: number of images at most.
    """
    images = len(vectors)
    candidates = np.setdiff1d(spread_evenly(images, COVERAGE_CANDIDATES), already)
    targets = spread_evenly(images, COVERED)
    values, worth = vectors[targets], (np.ones(images) if weight is None else weight)[targets].astype(np.float32)
    covered = np.zeros(len(targets), np.float32)
    for start in range(0, len(already), BLOCK):
        covered = np.maximum(covered, compute_similarity(vectors[already[start : start + BLOCK]], values).max(0))
    blocks = (candidates[start : start + BLOCK] for start in range(0, len(candidates), BLOCK))
    gains = [measure_gain(compute_similarity(vectors[block], values), covered, worth) for block in blocks]
    bounds = np.concatenate([*gains, np.zeros(0, np.float32)])  # a gain never grows: an earlier one is an upper bound
    order: list[int] = []
    while len(order) < min(count, len(candidates)):
        first = np.argpartition(-bounds, min(COVERAGE_BATCH, len(bounds) - 1))[:COVERAGE_BATCH]
        similar = compute_similarity(vectors[candidates[first]], values)
        while True:
            bounds[first] = np.where(bounds[first] < 0, -1, measure_gain(similar, covered, worth))
            best = int(bounds[first].argmax())
            if len(order) == min(count, len(candidates)) or bounds[first[best]] < bounds.max():
                break
            order.append(int(candidates[first[best]]))
            covered = np.maximum(covered, similar[best])
            bounds[first[best]] = -1
    return np.array(order, np.int64)


def spread_evenly(images: int, most: int) -> NDArray[np.int64]:
    """Int64: the numbers of `most` evenly spread images, or of all."""
    return np.linspace(0, images - 1, min(images, most)).astype(np.int64)


def compute_similarity(subset: Vectors, vectors: Vectors) -> Vectors:
    """Float32 [S, N]: cosines, cubed and at least 0."""
    cosines = np.maximum(subset @ vectors.T, 0)
    return cosines * cosines * cosines


def measure_gain(similar: Vectors, covered: Vectors, worth: Vectors) -> Vectors:
    """Float32 [S]: what each of S images adds. `similar`: [S, N], of `compute_similarity`."""
    return np.maximum(similar - covered, 0) @ worth


def hash_picture(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
