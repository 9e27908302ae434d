"""review.json: what a person is asked, in the order of the draws, and what the answers will be judged by.

It is a function of the model, the images and a seed, is written once, and holds all that `must select --answers` needs:
no image has to be looked at again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from must.base import storage
from must.base.names import SHA256, of_form
from must.base.parameters import require
from must.base.text import brief
from must.method.answers.book import Answer
from must.method.answers.judge import NO_CLASS, UNSURE, Verdict, judged
from must.method.answers.order import drawn, prior, weights

FILE, FORMAT = "review.json", 1
MOST = 2_000  # pictures in a plan: more than anybody answers


@dataclass(frozen=True)
class Picture:
    """`number`: in the split; `chance`: its weight among all that could be asked about; `classes`: [A] numbers of the
    candidates' classes; `alike`: numbers of the pictures that look most like it."""

    number: int
    image: str
    sha256: str
    chance: float
    classes: tuple[int, ...]
    alike: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A candidates: zero-shot, then the rungs at `alphas` [A - 1] of the way."""

    model_sha256: str  # of model.safetensors
    baseline: str  # what `must select` will be given
    shards: str
    index_sha256: str
    split: str
    classes: list[str]
    alphas: list[float]
    images: int  # among which the gain is measured
    pool: int  # pictures on which some candidate differs from zero-shot
    promise: list[float]  # [A - 1]
    least: list[list[float]]  # [A, A]
    differing: list[list[int]]  # [A, A]
    pictures: list[Picture]
    format: int = FORMAT

    @cached_property
    def at(self) -> dict[str, int]:
        """Class name -> number."""
        return {name: number for number, name in enumerate(self.classes)}

    def names(self, position: int) -> list[str]:
        """The candidates' class names for a picture, zero-shot's first, each once."""
        return [self.classes[number] for number in dict.fromkeys(self.pictures[position].classes)]

    def answered(self, answers: dict[str, Answer]) -> int:
        """How many of the first pictures have an answer, up to the first that has none: with a gap, those behind it
        would be the ones that were easy to answer."""
        for position, picture in enumerate(self.pictures):
            if picture.sha256 not in answers:
                return position
        return len(self.pictures)

    def verdict(self, answers: dict[str, Answer]) -> Verdict:
        """What the answers say, those up to the first gap."""
        asked = self.pictures[: self.answered(answers)]
        given = [answers[picture.sha256] for picture in asked]
        truth = [UNSURE if a.unsure else NO_CLASS if a.label is None else self.at.get(a.label, NO_CLASS) for a in given]
        return judged(
            np.array([picture.classes for picture in asked], np.int64).reshape(len(asked), len(self.alphas) + 1).T,
            np.array(truth, np.int64),
            np.array([picture.chance for picture in asked]),
            np.array(self.promise),
            np.array(self.least),
            self.images,
            np.array(self.differing),
        )

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def plan_of(labels: np.ndarray, likely: np.ndarray, z: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(places of the pictures to ask about, int64 [at most MOST] in the order of the draws; what of a plan follows
    from the predictions).

    Args:
        labels: int [A, N], the candidates' classes.
        likely: [A, N], how likely each candidate's class is to be right.
        z: [A - 1], look-alikes' evidence for each rung against zero-shot, in standard errors.
    """
    promise = prior(z)
    chances = weights(labels, likely, promise)
    differ = labels[:, None, :] != labels[None, :, :]
    order = drawn(chances, seed)[:MOST]
    return order, {
        "images": labels.shape[1],
        "pool": int((chances > 0).sum()),
        "promise": promise.tolist(),
        "least": np.where(differ, chances, 1.0).min(axis=-1).tolist(),
        "differing": differ.sum(axis=-1).tolist(),
        "chances": chances[order].tolist(),
    }


def save_plan(plan: Plan, folder: str) -> None:
    storage.write_bytes(storage.join(folder, FILE), plan.to_json())


def load_plan(folder: str, flag: str = "--answers") -> Plan:
    """Raises ValueError: there is none, it is damaged, or of another version."""
    uri = storage.join(folder, FILE)
    try:
        content = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{flag} {folder}: no {FILE} there; it is what `must review` writes") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{uri}: is damaged; delete it, and `must review` makes it again") from None
    try:
        require(content["format"] == FORMAT, "was written by another version")
        return checked(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{uri}: is damaged ({brief(str(error))}); delete it, and `must review` makes it again"
        ) from None


def checked(content: dict[str, Any]) -> Plan:
    """Raises ValueError, KeyError, TypeError: not what `must review` writes."""
    require(content.keys() == {f.name for f in fields(Plan)}, "other fields")
    candidates, classes = len(content["alphas"]) + 1, content["classes"]
    for name in ("least", "differing"):
        require(np.array(content[name], np.float64).shape == (candidates, candidates), name)
    require(np.array(content["promise"], np.float64).shape == (candidates - 1,), "promise")
    require(all(isinstance(name, str) for name in classes), "classes")
    return Plan(**content | {"pictures": checked_pictures(content["pictures"], candidates, len(classes))})


def checked_pictures(entries: list[dict[str, Any]], candidates: int, classes: int) -> list[Picture]:
    """Raises ValueError, TypeError, KeyError: not what `must review` writes."""
    pictures = []
    for entry in entries:
        picture = Picture(**entry | {"classes": tuple(entry["classes"]), "alike": tuple(entry["alike"])})
        of_form(SHA256, picture.sha256, "sha256")
        numbers = (picture.number, *picture.classes, *picture.alike)
        require(all(type(number) is int and number >= 0 for number in numbers), "a picture's numbers")
        require(isinstance(picture.image, str), "a picture's name")
        require(len(picture.classes) == candidates and max(picture.classes) < classes, "a picture's classes")
        require(0 <= picture.chance <= 1, "a picture's chance")
        pictures.append(picture)
    return pictures


def fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def whole_of(model: str) -> str:
    """The bundle with all of an adaptation, which training keeps beside one that has only a part of it, or none."""
    whole = storage.join(model, "adapted")
    return whole if storage.exists(storage.join(whole, "model.json")) else model
