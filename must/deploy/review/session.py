"""The state behind the page: which page shows which picture, and the answers. No torch, no HTTP."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from must.base.files import ANSWERS_FILE
from must.base.parameters import require
from must.method.answers.book import Answer, append
from must.method.answers.review import MODEL, RANDOM, Picture, Review

if TYPE_CHECKING:
    from must.deploy.review.prepare import AnswerEffect

RESERVED_S = 15.0  # seconds that a picture is reserved for the page that shows it
ALL_OFFERED = 12  # classes up to which all of them are offered
ANSWER_KINDS = ("label", "none", "unsure")
WAIT = 5.0  # seconds to wait until the effect of the last answers is computed
GRID_PICTURES = 60  # pictures of a class side by side
RECENT = 12  # answers that the page shows
SORTS = ("sure", "doubtful", "differ")


@dataclass(frozen=True)
class AnswerBatch:
    """Answers given by one press of a button."""

    page: str  # '': in an earlier run
    numbers: tuple[int, ...]


class Session:
    """Thread-safe. `effect` computes the effect of the answers, if that is shown."""

    def __init__(
        self, review: Review, folder: str, who: str, effect: "AnswerEffect | None" = None,
        clock: Callable[[], float] = time.monotonic, commands: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.path, self.who, self.clock, self.commands = Path(folder) / ANSWERS_FILE, who, clock, list(commands)
        self.lock = threading.Lock()
        self.shown: dict[int, tuple[str, float]] = {}  # number of a picture -> (page, time)
        self.drawn = set[int]()  # numbers of the pictures that were shown in the random order
        self.set_review(review, effect)
        groups = groupby(self.answers.values(), key=lambda answer: (answer.who, answer.when))
        numbers = {picture.sha256: picture.number for picture in review.pictures}
        self.batches = [AnswerBatch("", tuple(numbers[answer.sha256] for answer in group)) for _, group in groups]

    def set_review(self, review: Review, effect: "AnswerEffect | None") -> None:
        """Replaces the review by one of the same images or of more."""
        with self.lock:
            self.review, self.effect = review, effect
            self.answers = review.answers(str(self.path.parent))
            self.by_number = {picture.number: (index, picture) for index, picture in enumerate(review.pictures)}
            self.update_effect()

    def update_effect(self) -> None:
        if self.effect is not None:
            pictures, labels = self.review.truth(self.answers)
            numbers = (picture.number for picture in pictures)
            self.effect.update(list(zip(numbers, labels.tolist(), strict=True)))

    def state(self, page: str = "") -> dict[str, Any]:
        """The progress that the page shows. `gain`: in points with its interval; None without random answers."""
        effect = self.effect.text() if self.effect is not None else ""
        measured = self.review.measured(self.answers)
        answered = (number for batch in self.batches_of(page) for number in batch.numbers if self.answer_text(number))
        recent = list(answered)[-RECENT:]
        return {
            "answers": len(self.answers),
            "of": len(self.review.pictures),
            "random": self.review.order == RANDOM,
            "verdict": measured.verdict if measured else "",
            "gain": [100 * end for end in measured.gain] if measured else None,
            "text": f"{self.text()} {effect}".strip(),
            "recent": [{"number": number, "said": self.answer_text(number)} for number in reversed(recent)],
        }

    def text(self) -> str:
        """What the answers measure about the labels."""
        return self.review.text(self.answers)

    def answer_text(self, number: int) -> str:
        answer = self.answers.get(self.picture(number).sha256)
        return "" if answer is None else "cannot tell" if answer.unsure else answer.label or "none of the classes"

    def batches_of(self, page: str) -> list[AnswerBatch]:
        return [batch for batch in self.batches if batch.page in ("", page)]

    def picture(self, number: Any) -> Picture:
        """Raises ValueError: there is none."""
        require(type(number) is int and number in self.by_number, "there is no such picture")
        return self.by_number[number][1]

    def next(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The first pending picture that no other page shows."""
        with self.lock:
            return {"state": self.state(page), "picture": self.offer(page)}

    def leave(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The page is closed: other pages may show its picture."""
        with self.lock:
            self.shown = {number: shown for number, shown in self.shown.items() if shown[0] != page}
            return {}

    def measures(self, picture: Picture) -> bool:
        """Whether it has an answer that was given when the picture was drawn at random."""
        answer = self.answers.get(picture.sha256)
        return answer is not None and not answer.picked

    def is_pending(self, picture: Picture) -> bool:
        """Whether it is still to be asked. A random order also asks about pictures that were answered in a grid, or as
        similar ones: without them it would not be a random sample."""
        if self.review.order == RANDOM:
            return not self.measures(picture)
        return picture.sha256 not in self.answers

    def offer(self, page: str) -> dict[str, Any] | None:
        now = self.clock()
        for picture in self.review.pictures:
            if not self.is_pending(picture):
                continue
            shown_on, since = self.shown.get(picture.number, ("", 0.0))
            if shown_on in ("", page) or now - since > RESERVED_S:
                self.shown[picture.number] = page, now
                self.drawn.add(picture.number)
                return self.describe(picture.number)
        return None

    def describe(self, number: int) -> dict[str, Any]:
        """A picture and the class names to choose from: all classes, or the likely ones. In a random order the names
        are in the order of the classes, which does not hint at any model's prediction."""
        index, picture = self.by_number[number]
        classes, random = self.review.classes, self.review.order == RANDOM
        likely = sorted(picture.likely) if random else picture.likely
        names = [classes[k] for k in (range(len(classes)) if len(classes) <= ALL_OFFERED else likely)]
        similar = [
            {"number": other, "open": other in self.by_number and self.picture(other).sha256 not in self.answers}
            for other in picture.similar
        ]
        text = self.answer_text(number)
        return {"number": number, "place": index + 1, "names": names, "similar": similar, "said": text}

    def show(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """A picture again, to change its answer. Raises ValueError: there is none."""
        with self.lock:
            return {"state": self.state(page), "picture": self.describe(self.picture(request.get("number")).number)}

    def answer(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Writes answers to the disk; returns the next picture.
        `request`: `number` of the picture, if one was shown; `also`: numbers of others with the same answer; `kind`,
        one of ANSWER_KINDS, and `label`; `grid`: answered in the grid, so no next picture is returned; `who`.
        Raises ValueError: no such picture, or no such class."""
        kind, label, shown = (request.get(key) for key in ("kind", "label", "number"))
        grid, also = bool(request.get("grid")), request.get("also", [])
        require(kind in ANSWER_KINDS, "an answer is a label, none or unsure")
        require(kind != "label" or label in self.review.classes, "there is no such class")
        require(
            isinstance(also, list) and len(also) <= GRID_PICTURES,
            f"`also` must be a list of at most {GRID_PICTURES} numbers",
        )
        with self.lock:
            origin = "grid" if grid else "similar"
            origins = {number: origin for number in also if not self.measures(self.picture(number))}
            if shown is not None or not also:
                origins[self.picture(shown).number] = self.origin_of(shown, grid)
            lines = [self.line(number, origin, request) for number, origin in origins.items()]
            append(self.path, *lines)
            for line in lines:
                fields = line.get("label"), kind == "unsure", line["image"], line["who"], line["when"], "picked" in line
                self.answers.pop(line["sha256"], None)
                self.answers[line["sha256"]] = Answer(line["sha256"], *fields)
            for number in origins:
                self.shown.pop(number, None)
            self.batches += [AnswerBatch(page, tuple(origins))] if origins else []
            self.update_effect()
            return {"state": self.state(page), "picture": None if grid else self.offer(page)}

    def origin_of(self, number: Any, grid: bool) -> str:
        """How the picture was selected: the field `how` of its answer. A picture drawn at random stays so, also when
        its answer is changed."""
        if self.review.order != RANDOM:
            return "grid" if grid else "doubtful"
        if self.measures(self.picture(number)):
            return "random"
        return "grid" if grid else "random" if number in self.drawn else "chosen"

    def line(self, number: int, origin: str, request: dict[str, Any]) -> dict[str, Any]:
        picture, kind = self.picture(number), request["kind"]
        who, when = str(request.get("who") or self.who)[:100], datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"image": picture.image, "sha256": picture.sha256, "who": who, "when": when}
        line |= {"unsure": True} if kind == "unsure" else {"label": request["label"] if kind == "label" else None}
        return line | {"how": origin} | ({} if origin == "random" else {"picked": True})

    def undo(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Undoes the last batch of answers of this page, or else of an earlier run, and shows its picture again."""
        with self.lock:
            batches = self.batches_of(page)
            require(bool(batches), "there is no answer to take back")
            self.batches.remove(batches[-1])
            numbers = batches[-1].numbers
            lines = [self.line(number, "", {"kind": "unsure", "who": request.get("who")}) for number in numbers]
            append(self.path, *(line | {"undone": True} for line in lines if line["sha256"] in self.answers))
            for picture in map(self.picture, numbers):
                self.drawn |= {picture.number} if self.measures(picture) else set()
                self.answers.pop(picture.sha256, None)
            self.shown[numbers[-1]] = page, self.clock()
            self.update_effect()
            return {"state": self.state(page), "picture": self.describe(numbers[-1]), "undone": len(numbers)}

    def grid(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Unanswered pictures to which the model gives `label`, by default its most frequent class. `sort`: one of
        SORTS; "differ": only those to which zero-shot model, adapted model and refined labels give different classes.
        """
        sort, classes = request.get("sort", "sure"), self.review.classes
        require(sort in SORTS, "no such order")
        with self.lock:
            unanswered = [picture for picture in self.review.pictures if picture.sha256 not in self.answers]
            if sort == "differ":
                unanswered = [picture for picture in unanswered if len(set(picture.classes)) > 1]
            counts = Counter(picture.classes[MODEL] for picture in unanswered)
            label = request.get("label") or (classes[counts.most_common(1)[0][0]] if counts else classes[0])
            require(label in classes, "there is no such class")
            members = [picture for picture in unanswered if picture.classes[MODEL] == self.review.number_of[label]]
            members.sort(key=lambda picture: -picture.confidence if sort == "sure" else picture.confidence)
            return {
                "state": self.state(page),
                "label": label,
                "left": len(members),
                "counts": [counts[number] for number in range(len(classes))],
                "pictures": [
                    {"number": picture.number, "says": [classes[number] for number in picture.classes]}
                    for picture in members[:GRID_PICTURES]
                ],
            }

    def end(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The summary of the answers: rows of (kind of labels, accuracy, its interval), changed labels, commands."""
        if self.effect is not None:
            self.effect.wait(WAIT)
        with self.lock:
            state, measured = self.state(page), self.review.measured(self.answers)
            rows = []
            if measured and measured.refined:
                rows = [
                    ["zero-shot", *measured.zero_shot], ["the model", *measured.model],
                    ["refined labels, without answers", *measured.refined],
                ]  # fmt: skip
            return {
                "state": state, "rows": rows, "measured": measured.answers if measured else 0,
                "changed": self.effect.changed if self.effect is not None else None,
                "relabelled": len(self.review.relabelled(self.answers)), "commands": self.commands,
            }  # fmt: skip
