"""Who is shown which picture, and what they said: the state behind the page. No torch, no HTTP."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from must.base.files import ANSWERS_FILE
from must.base.parameters import require
from must.base.text import counted
from must.method.answers.book import Answer, append
from must.method.answers.review import MODEL, RANDOM, Picture, Review

if TYPE_CHECKING:
    from must.deploy.review.prepare import Known, Teaching

RESERVED = 15.0  # seconds that a picture is kept for the page that shows it
ALL_OFFERED = 12  # classes up to which all of them are offered
ANSWER_KINDS = ("label", "none", "unsure")
WAIT = 5.0  # seconds for what the last answers change
GRID_PICTURES = 60  # pictures of a class side by side
RECENT = 12  # answers that the page shows
EARLIER = 50  # times that answers of an earlier run can be taken back
SORTS = ("sure", "doubtful", "differ")


@dataclass(frozen=True)
class AnswerBatch:
    """Answers that one press of a button gave."""

    page: str  # '': in an earlier run
    numbers: tuple[int, ...]


class Session:
    """All methods may be called from several threads. `teaching` computes what the answers change, if that is shown."""

    def __init__(
        self, review: Review, folder: str, who: str, teaching: "Teaching | None" = None,
        clock: Callable[[], float] = time.monotonic, commands: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.path, self.who, self.clock, self.commands = Path(folder) / ANSWERS_FILE, who, clock, list(commands)
        self.lock = threading.Lock()
        self.shown: dict[int, tuple[str, float]] = {}  # number of a picture -> (person's page, when)
        self.drawn = set[int]()  # numbers that the random order came to
        self.hold(review, teaching)
        groups = groupby(self.answers.values(), key=lambda one: (one.who, one.when))
        numbers = {picture.sha256: picture.number for picture in review.pictures}
        self.given = [AnswerBatch("", tuple(numbers[one.sha256] for one in group)) for _, group in groups][-EARLIER:]

    def hold(self, review: Review, teaching: "Teaching | None") -> None:
        """Goes on with this review, of the same images or of more."""
        with self.lock:
            self.review, self.teaching = review, teaching
            self.answers = review.answers(str(self.path.parent))
            self.of = {picture.number: (place, picture) for place, picture in enumerate(review.pictures)}
            self.teach()

    def teach(self) -> None:
        if self.teaching is not None:
            known, drawn = (self.review.truth(self.answers, drawn=only) for only in (False, True))
            self.teaching.update(pairs(*known), pairs(*drawn))

    def state(self, page: str = "") -> dict[str, Any]:
        """What the page tells about how far it has come. `gain`: in points, with its interval, once answers measure."""
        taught = self.teaching.text() if self.teaching is not None else ""
        measured = self.review.measured(self.answers)
        recent = [number for one in self.theirs(page) for number in one.numbers if self.said(number)][-RECENT:]
        return {
            "answers": len(self.answers),
            "of": len(self.review.pictures),
            "random": self.review.order == RANDOM,
            "verdict": measured.verdict if measured else "",
            "gain": [100 * end for end in measured.gain] if measured else None,
            "text": f"{self.text()} {taught}".strip(),
            "recent": [{"number": number, "said": self.said(number)} for number in reversed(recent)],
        }

    def text(self) -> str:
        """What the answers say of the labels."""
        return self.review.text(self.answers)

    def said(self, number: int) -> str:
        answer = self.answers.get(self.picture(number).sha256)
        return "" if answer is None else "cannot tell" if answer.unsure else answer.label or "none of the classes"

    def theirs(self, page: str) -> list[AnswerBatch]:
        return [one for one in self.given if one.page in ("", page)]

    def picture(self, number: Any) -> Picture:
        """Raises ValueError: there is none."""
        require(type(number) is int and number in self.of, "there is no such picture")
        return self.of[number][1]

    def next(self, page: str, said: dict[str, Any] | None = None) -> dict[str, Any]:
        """The first picture that is still to be asked and that no other page shows."""
        with self.lock:
            return {"state": self.state(page), "picture": self.offer(page)}

    def leave(self, page: str, said: dict[str, Any] | None = None) -> dict[str, Any]:
        """The page is closed: others may be shown its picture."""
        with self.lock:
            self.shown = {number: shown for number, shown in self.shown.items() if shown[0] != page}
            return {}

    def measures(self, picture: Picture) -> bool:
        """Whether it was answered when it was drawn at random."""
        answer = self.answers.get(picture.sha256)
        return answer is not None and not answer.picked

    def open(self, picture: Picture) -> bool:
        """Whether the order comes to it. A random order comes also to pictures that were answered in a grid, or as
        similar ones: without those it would be no random sample any more."""
        if self.review.order == RANDOM:
            return not self.measures(picture)
        return picture.sha256 not in self.answers

    def offer(self, page: str) -> dict[str, Any] | None:
        now = self.clock()
        for picture in self.review.pictures:
            if not self.open(picture):
                continue
            other, since = self.shown.get(picture.number, ("", 0.0))
            if other in ("", page) or now - since > RESERVED:
                self.shown[picture.number] = page, now
                self.drawn.add(picture.number)
                return self.describe(picture.number)
        return None

    def describe(self, number: int) -> dict[str, Any]:
        """A picture and the names that are offered: all classes, or the likely ones. While pictures are drawn at random
        they are in the classes' own order, which says nothing of any model."""
        place, picture = self.of[number]
        classes, random = self.review.classes, self.review.order == RANDOM
        likely = sorted(picture.likely) if random else picture.likely
        names = [classes[k] for k in (range(len(classes)) if len(classes) <= ALL_OFFERED else likely)]
        similar = [
            {"number": other, "open": other in self.of and self.of[other][1].sha256 not in self.answers}
            for other in picture.similar
        ]
        return {"number": number, "place": place + 1, "names": names, "similar": similar, "said": self.said(number)}

    def show(self, page: str, said: dict[str, Any]) -> dict[str, Any]:
        """A picture again, to answer it anew. Raises ValueError: there is none."""
        with self.lock:
            return {"state": self.state(page), "picture": self.describe(self.picture(said.get("number")).number)}

    def answer(self, page: str, said: dict[str, Any]) -> dict[str, Any]:
        """Keeps answers on the disk, and then gives the next picture.

        Args:
            said: `number` of the picture, if one was shown; `also`: numbers of others with the same answer; `kind`, one
                of ANSWER_KINDS, and `label`; `grid`: they come from there, and no picture is given back; `who`.

        Raises:
            ValueError: no such picture, or no such class.
        """
        kind, label, grid, shown = said.get("kind"), said.get("label"), bool(said.get("grid")), said.get("number")
        require(kind in ANSWER_KINDS, "an answer is a label, none or unsure")
        require(kind != "label" or label in self.review.classes, "there is no such class")
        also = said.get("also", [])
        require(
            isinstance(also, list) and len(also) <= GRID_PICTURES,
            f"`also` must be a list of at most {GRID_PICTURES} numbers",
        )
        with self.lock:
            hows = {number: "grid" if grid else "similar" for number in also if not self.measures(self.picture(number))}
            if shown is not None or not also:
                hows[self.picture(shown).number] = self.how(shown, grid)
            lines = [self.line(number, how, said) for number, how in hows.items()]
            append(self.path, *lines)
            for line in lines:
                given = line.get("label"), kind == "unsure", line["image"], line["who"], line["when"], "picked" in line
                self.answers.pop(line["sha256"], None)
                self.answers[line["sha256"]] = Answer(line["sha256"], *given)
            for number in hows:
                self.shown.pop(number, None)
            self.given += [AnswerBatch(page, tuple(hows))] if hows else []
            self.teach()
            note = self.note(list(hows.values()), kind == "unsure")
            return {"state": self.state(page), "picture": None if grid else self.offer(page), "note": note}

    def how(self, number: Any, grid: bool) -> str:
        """How a picture came to be asked. One that was drawn stays drawn, whenever its answer is changed."""
        if self.review.order != RANDOM:
            return "grid" if grid else "doubtful"
        if self.measures(self.picture(number)):
            return "random"
        return "grid" if grid else "random" if number in self.drawn else "chosen"

    def note(self, hows: list[str], unsure: bool) -> str:
        """What a person should know at once of the answers just given."""
        picked = len(hows) - hows.count("random")
        if unsure:
            return "“Cannot tell” counts for nothing."
        said = f"{counted(picked, 'answer')} for correcting labels only, left out of the accuracy: not drawn at random."
        return said if picked else ""

    def line(self, number: int, how: str, said: dict[str, Any]) -> dict[str, Any]:
        picture, kind = self.picture(number), said["kind"]
        who, when = str(said.get("who") or self.who)[:100], datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"image": picture.image, "sha256": picture.sha256, "who": who, "when": when}
        what = {"unsure": True} if kind == "unsure" else {"label": said["label"] if kind == "label" else None}
        return line | what | {"how": how} | ({} if how == "random" else {"picked": True})

    def undo(self, page: str, said: dict[str, Any]) -> dict[str, Any]:
        """Takes back what this page said last, or else what an earlier run did, and shows that picture again."""
        with self.lock:
            theirs = self.theirs(page)
            require(bool(theirs), "there is no answer to take back")
            self.given.remove(theirs[-1])
            numbers = theirs[-1].numbers
            pictures = [self.picture(number) for number in numbers]
            lines = [self.line(number, "", {"kind": "unsure", "who": said.get("who")}) for number in numbers]
            gone = [line | {"undone": True} for line in lines if line["sha256"] in self.answers]
            append(self.path, *gone)
            for picture in pictures:
                self.drawn |= {picture.number} if self.measures(picture) else set()
                self.answers.pop(picture.sha256, None)
            number = numbers[-1]
            self.shown[number] = page, self.clock()
            self.teach()
            return {"state": self.state(page), "picture": self.describe(number), "undone": len(numbers)}

    def grid(self, page: str, said: dict[str, Any]) -> dict[str, Any]:
        """Pictures without an answer to which the model gives `label`, or the one with most of them; `sort`, one
        of SORTS: "differ" gives those alone to which zero-shot, the model and the refined labels give several."""
        sort, classes = said.get("sort", "sure"), self.review.classes
        require(sort in SORTS, "no such order")
        with self.lock:
            left = [one for one in self.review.pictures if one.sha256 not in self.answers]
            if sort == "differ":
                left = [one for one in left if len(set(one.classes)) > 1]
            counts = Counter(one.classes[MODEL] for one in left)
            label = said.get("label") or (classes[counts.most_common(1)[0][0]] if counts else classes[0])
            require(label in classes, "there is no such class")
            own = [one for one in left if one.classes[MODEL] == self.review.number_of[label]]
            own.sort(key=lambda one: -one.confidence if sort == "sure" else one.confidence)
            return {
                "state": self.state(page),
                "label": label,
                "left": len(own),
                "counts": [counts[number] for number in range(len(classes))],
                "pictures": [
                    {"number": one.number, "says": [classes[number] for number in one.classes]}
                    for one in own[:GRID_PICTURES]
                ],
            }

    def end(self, page: str, said: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the answers did: rows of (whose labels, share that is right, its interval), changed labels, commands."""
        if self.teaching is not None:
            self.teaching.wait(WAIT)
        with self.lock:
            state, measured = self.state(page), self.review.measured(self.answers)
            rows = []
            if measured and measured.refined:
                rows = [
                    ["zero-shot", *measured.zero_shot], ["the model", *measured.model],
                    ["refined labels, without answers", *measured.refined],
                ]  # fmt: skip
            answers, *right = self.teaching.all if self.teaching is not None and self.teaching.all else (0,)
            if rows and measured and answers == measured.answers:
                rows.append(["refined labels, corrected by the other answers", *right])
            changed = self.teaching.changed if self.teaching is not None else None
            other = len(self.review.relabelled(self.answers))
            count = measured.answers if measured else 0
            reply = {"state": state, "rows": rows, "measured": count, "changed": changed, "relabelled": other}
            return reply | {"commands": self.commands}


def pairs(pictures: list[Picture], labels: np.ndarray) -> "Known":
    return [(picture.number, label) for picture, label in zip(pictures, labels.tolist(), strict=True)]
