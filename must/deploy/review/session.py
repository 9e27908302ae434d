"""Who is shown which picture, and what they said: the state behind the page. No torch, no HTTP."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from must.base.parameters import require
from must.method.answers.book import FILE, Answer, append
from must.method.answers.review import RANDOM, Picture, Review

if TYPE_CHECKING:
    from must.deploy.review.teaching import Known, Teaching

PATIENCE = 15.0  # seconds that a picture is kept for the page that shows it
FEW = 12  # classes up to which all of them are offered
CHOICES = ("label", "none", "unsure")


class Session:
    """All methods may be called from several threads. `teaching` computes what the answers change, if that is shown."""

    def __init__(
        self, review: Review, folder: str, who: str, teaching: "Teaching | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.review, self.path, self.who, self.teaching, self.clock = review, Path(folder) / FILE, who, teaching, clock
        self.lock = threading.Lock()
        self.answers = review.answers(folder)
        self.shown: dict[int, tuple[str, float]] = {}  # position -> (person's page, when)
        self.teach()

    def teach(self) -> None:
        if self.teaching is not None:
            known, drawn = (self.review.truth(self.answers, drawn=only) for only in (False, True))
            self.teaching.update(pairs(*known), pairs(*drawn))

    def state(self) -> dict[str, Any]:
        """What the page tells about how far it has come."""
        taught = self.teaching.state() if self.teaching is not None else {"text": "", "curve": []}
        counts = {"answers": len(self.answers), "of": len(self.review.pictures), "curve": taught["curve"]}
        return {**counts, "text": f"{self.text()} {taught['text']}".strip()}

    def text(self) -> str:
        """What the answers say of the labels."""
        if self.review.order != RANDOM:
            other = len(self.review.relabelled(self.answers))
            return f"{len(self.answers):,} answers, {other:,} unlike the model's; doubtful pictures measure nothing."
        measured = self.review.measured(self.answers)
        return f"{measured.text()}." if measured else "No answers yet."

    def next(self, page: str) -> dict[str, Any]:
        """The first picture that nobody has answered and no other page shows."""
        with self.lock:
            return {"state": self.state(), "picture": self.offer(page)}

    def leave(self, page: str) -> dict[str, Any]:
        """The page is closed: others may be shown its picture."""
        with self.lock:
            self.shown = {position: shown for position, shown in self.shown.items() if shown[0] != page}
            return {}

    def offer(self, page: str) -> dict[str, Any] | None:
        now = self.clock()
        for position, picture in enumerate(self.review.pictures):
            if picture.sha256 in self.answers:
                continue
            other, since = self.shown.get(position, ("", 0.0))
            if other in ("", page) or now - since > PATIENCE:
                self.shown[position] = page, now
                return self.describe(position)
        return None

    def describe(self, position: int) -> dict[str, Any]:
        """A picture and the names that are offered: all classes, or the likely ones; in the classes' own order, which
        says nothing of any model."""
        picture, classes = self.review.pictures[position], self.review.classes
        offered = range(len(classes)) if len(classes) <= FEW else sorted(picture.likely)
        names = [classes[number] for number in offered]
        return {"position": position, "number": picture.number, "names": names, "similar": list(picture.similar)}

    def answer(self, page: str, position: int, said: dict[str, Any]) -> dict[str, Any]:
        """Keeps an answer on the disk, and then gives the next picture.

        Raises:
            ValueError: no such picture, or no such class.
        """
        picture, line = self.begun(position, said)
        kind, label = said.get("kind"), said.get("label")
        require(kind in CHOICES, "an answer is a label, none or unsure")
        require(kind != "label" or label in self.review.classes, "there is no such class")
        label = label if kind == "label" else None
        line |= {"unsure": True} if kind == "unsure" else {"label": label}
        picked = self.review.order != RANDOM
        line |= ({"picked": True} if picked else {}) | {"shown": self.describe(position)["names"]}
        one = Answer(picture.sha256, label, kind == "unsure", picture.image, line["who"], line["when"], picked)
        with self.lock:
            append(self.path, line)
            self.answers[picture.sha256] = one
            self.shown.pop(position, None)
            self.teach()
            return {"state": self.state(), "picture": self.offer(page)}

    def begun(self, position: int, said: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        """(the picture, the beginning of a line about it). Raises ValueError: there is none."""
        require(0 <= position < len(self.review.pictures), "there is no such picture")
        picture = self.review.pictures[position]
        who, when = str(said.get("who") or self.who)[:100], datetime.now(UTC).isoformat(timespec="seconds")
        return picture, {"image": picture.image, "sha256": picture.sha256, "who": who, "when": when}

    def undo(self, page: str, position: int, said: dict[str, Any]) -> dict[str, Any]:
        """Takes an answer back, and shows its picture again. Raises ValueError: there is none."""
        picture, line = self.begun(position, said)
        with self.lock:
            if picture.sha256 in self.answers:
                append(self.path, line | {"unsure": True, "undone": True})
                del self.answers[picture.sha256]
            self.shown[position] = page, self.clock()
            self.teach()
            return {"state": self.state(), "picture": self.describe(position)}


def pairs(pictures: list[Picture], labels: np.ndarray) -> "Known":
    return [(picture.number, label) for picture, label in zip(pictures, labels.tolist(), strict=True)]
