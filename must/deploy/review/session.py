"""The state behind the page: which page shows which picture, and the answers. No torch, no HTTP."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import pluralize
from must.config.work import ANSWERS_FILE
from must.data.format import load_index
from must.method.answers import answers_file
from must.method.answers.answers_file import AGAIN, COVERAGE, GRID, LEFT, NO_CLASS, RANDOM, SIMILAR, Answer
from must.method.answers.estimate import LIGHTS, Accepted, AccuracyEstimate
from must.method.answers.review import MODEL, REFINED, SCHEDULE, Picture, Review
from must.method.model.description import load_description

CHANGED = "The images or the model are others now: end this program and start it again; your answers are kept."
RESERVED_S = 15.0  # seconds that a picture is reserved for the page that shows it
BUTTONS = 30  # classes up to which each has a button
ACTIONS = ("next", "show", "answer", "undo", "grid", "end", "leave")
ANSWER_KINDS = ("label", "none", "unsure")
WAIT = 5.0  # seconds to wait until the effect of the last answers is computed
GRID_PICTURES = 60  # pictures of a class side by side
RECENT = 12  # answers that the page shows
SORTS = ("sure", "doubtful", "differ")
GOOD_LABELS = 0.8  # share of right labels above which all questions are drawn at random
LEFT_TIMES = 2  # the pictures that are left are asked about once there are so many times as many answers


def find_made_of(model: str, shards: str) -> tuple[str, str]:
    """The sha256 of the model's weights and of the shards' index; "" while another program writes them."""
    with suppress(UserError, OSError):
        return load_description(model).weights_sha256, load_index(shards).sha256
    return "", ""


@dataclass(frozen=True)
class Progress:
    """What the answers have done so far."""

    answers: int
    changed: int  # labels of other pictures
    unread: int  # pictures without an answer that --limit left out, and those of them with one:
    elsewhere: int
    labels: dict[int, int]  # number -> class of each picture, as of `TopLabels`
    true: tuple[float, float] | None  # shares of zero-shot's classes and of the labels that are right, where known
    accuracy: AccuracyEstimate | None = None  # None: no answer measures yet
    accepted: Accepted | None = None
    right: float = 0.0  # share of the pictures drawn at random whose label is right without their own answer
    left: Sequence[int] = ()  # numbers of the pictures that a person still has to name, the least sure label first
    classes: Sequence[dict[str, Any]] = ()  # rows of `describe_classes`

    def text(self) -> str:
        parts = [f"{self.accuracy.text()}."] if self.accuracy else []
        parts += [self.accepted.text()] if self.accepted else []
        parts += [f"So far {pluralize(self.changed, 'label')} of other pictures changed."] if self.changed else []
        return " ".join(parts)


class Effect(Protocol):
    """What answers do, computed beside the page."""

    progress: Progress | None
    changed: bool  # whether the images or the model are others now

    @property
    def is_current(self) -> bool:
        """Whether `progress` is of the last answers."""

    def update(self) -> None:
        """Answers were written, or taken back."""

    def wait(self, seconds: float | None = None) -> None:
        """Until the last ones are counted."""


class Session:
    """`effect` computes the effect of the answers, if that is shown. Only `act` and `set_review` are thread-safe.

    The requests of a page hold `page`, the tab, for which a picture is reserved; `browser`, whose answers an undo takes
    back; and `who`, the person's name.
    """

    def __init__(
        self, review: Review, folder: str, who: str, effect: Effect | None = None,
        clock: Callable[[], float] = time.monotonic, commands: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.path, self.who, self.clock, self.commands = Path(folder) / ANSWERS_FILE, who, clock, list(commands)
        self.lock = threading.Lock()
        self.shown: dict[str, tuple[str, float]] = {}  # sha256 -> (page, time)
        self.may_be_finished = False  # by an offer: whether it is depends on answers whose effect is not computed yet
        self.offered: dict[str, str] = {}  # sha256 -> the stream in which it was asked about
        self.pictures: dict[int, Picture] = {}  # of this review and of those before, which pages may still show
        self.set_review(review, effect)
        self.browsers: dict[str, str] = {}  # time of answers in this run -> the browser that gave them

    def set_review(self, review: Review, effect: Effect | None) -> None:
        """Replaces the review by one of the same model, of the same images or of others."""
        with self.lock:
            self.review, self.effect = review, effect
            self.pictures |= {picture.number: picture for picture in review.pictures}
            self.by_sha256 = {picture.sha256: picture for picture in self.pictures.values()}
            history = answers_file.read_history(str(self.path.parent))
            here = {sha256: answers for sha256, answers in history.items() if sha256 in self.by_sha256}
            self.history = {sha256: answers for sha256, answers in here.items() if answers[-1].fits(review.classes)}
            # Those that do not fit the classes are asked again, first of all.
            self.outdated = {sha256: answers[-1] for sha256, answers in here.items() if sha256 not in self.history}
            self.update_effect()

    def act(self, action: str, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """One of ACTIONS: the method of this name."""
        if action == "end":
            self.wait()
        with self.lock:
            self.may_be_finished = False
            reply: dict[str, Any] = getattr(self, action)(page, request)
            undecided = self.may_be_finished
        if undecided:
            self.wait()
            with self.lock:
                reply = self.next(page, request)
        return reply

    def wait(self) -> None:
        """Until the effect of the last answers is computed, but not longer than WAIT. Without the lock: other pages
        are served meanwhile."""
        if self.effect is not None:
            self.effect.wait(WAIT)

    @property
    def answers(self) -> dict[str, Answer]:
        """sha256 -> the answer that counts."""
        return {sha256: answers[-1] for sha256, answers in self.history.items() if answers}

    @property
    def measuring(self) -> dict[str, Answer]:
        """As `answers`, with the outdated ones about pictures that were drawn at random."""
        return {sha256: answer for sha256, answer in self.outdated.items() if is_measuring(answer)} | self.answers

    def update_effect(self) -> None:
        if self.effect is not None:
            self.effect.update()

    @property
    def progress(self) -> Progress | None:
        return self.effect.progress if self.effect is not None else None

    @property
    def is_current(self) -> bool:
        """Whether `progress` is of the last answers."""
        return self.effect is None or self.effect.is_current

    @property
    def finished(self) -> bool:
        """Whether nobody has to name a picture any more, of all that there are."""
        progress = self.progress
        return self.is_current and bool(progress and not progress.unread) and self.left(True) == []

    def left(self, finish: bool) -> list[Picture] | None:
        """The pictures that a person still has to name, the least sure label first; None: it is better to go on with
        others, which teach and measure. `finish`: the person wants to name them now."""
        progress = self.progress
        if progress is None or progress.accepted is None or not progress.accepted.accepted:
            return None
        answers = self.answers
        pictures = [self.pictures[number] for number in progress.left if number in self.pictures]
        left = [picture for picture in pictures if picture.sha256 not in answers]
        return left if finish or LEFT_TIMES * len(left) <= len(answers) else None

    def state(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The progress that the page shows. `text`: what the answers measure and have done; `gain`: in points with its
        interval; None without random answers, and both before their effect is computed for the first time; `set`:
        how many pictures are answered, need not be looked at, and are left, `unread` ones among them, about which this
        page does not ask; None where nothing is promised; `labels`: the share of right labels with its interval;
        `true`: of zero-shot and of the labels, where it is known."""
        answers, progress = self.answers, self.progress
        unread, elsewhere = (progress.unread, progress.elsewhere) if progress else (0, 0)
        counts = progress.accepted if progress and progress.accepted and progress.accepted.accepted else None
        measured = progress.accuracy if progress and answers else None
        batches = self.find_batches(page, request)
        times = [(sha256, when) for when, sha256s in batches.items() for sha256 in sha256s]
        recent = [sha256 for sha256, when in times if answers[sha256].when == when]
        return {
            "answers": len(answers),
            "of": len(self.review.pictures),
            "verdict": measured.verdict if measured else "",
            "gain": [100 * end for end in measured.gain] if measured else None,
            "text": self.text(),
            "counting": progress is None,
            "problem": CHANGED if self.effect and self.effect.changed else "",
            "set": {
                "pictures": counts.pictures + unread + elsewhere,
                "answered": counts.answered + elsewhere,
                "accepted": counts.accepted,
                "left": counts.left + unread,
                "unread": unread,
            }
            if counts
            else None,
            "finished": self.finished,
            "unsure": sum(answer.unsure for answer in answers.values()),
            "labels": measured and measured.labels,
            "true": progress and progress.true,
            "undo": bool(batches),
            "recent": [
                {"number": self.by_sha256[sha256].number, "answer": format_answer(answers[sha256])}
                for sha256 in reversed(recent[-RECENT:])
            ],
        }

    def text(self) -> str:
        """What the answers measure, and what they have done; of those before the last ones while these are counted."""
        answers = self.answers.values()
        if not answers:
            return "No answers yet."
        others = sum(answer.sampled != RANDOM and not answer.unsure for answer in answers)
        progress, unsure = self.progress, sum(answer.unsure for answer in answers)
        parts = [progress.text()] if progress else []
        if others:
            parts.append(f"{pluralize(others, 'answer')} for teaching only: not drawn at random.")
        if unsure:
            parts.append(f"{pluralize(unsure, 'answer')} “cannot tell”.")
        if progress and progress.unread:
            pictures = pluralize(progress.unread, "other picture")
            parts.append(f"{pictures} are left that were not read here (--limit); `must refine` counts these, too.")
        return " ".join(parts).strip()

    def find_batches(self, page: str, request: dict[str, Any] | None) -> dict[str, list[str]]:
        """{time: sha256s} of the answers by this browser, or of an earlier run by this person; those of one press of a
        button have one time. Corrections made elsewhere are left out: an undo must not take back all of them."""
        browser, who = self.sender(page, request)
        batches = defaultdict[str, list[str]](list)
        for sha256, answers in self.history.items():
            for answer in answers:
                sender = self.browsers.get(answer.when)  # None: in an earlier run
                mine = bool(who) and answer.who == who if sender is None else sender == browser
                if mine and answer.when and answer.sampled != answers_file.ADDED:
                    batches[answer.when].append(sha256)
        return dict(sorted(batches.items()))

    def sender(self, page: str, request: dict[str, Any] | None) -> tuple[str, str]:
        """(browser, name of the person)."""
        request = request or {}
        return str(request.get("browser") or page)[:64], str(request.get("who") or self.who)[:100]

    def picture(self, number: Any) -> Picture:
        require(type(number) is int and number in self.pictures, "there is no such picture")
        return self.pictures[number]

    def reply(self, page: str, request: dict[str, Any] | None, picture: dict[str, Any] | None) -> dict[str, Any]:
        return {"state": self.state(page, request), "picture": picture}

    def next(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The next picture to ask about that no other page shows."""
        return self.reply(page, request, self.offer(page, request))

    def leave(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The page is closed: other pages may show its picture."""
        self.shown = {sha256: shown for sha256, shown in self.shown.items() if shown[0] != page}
        return {}

    def pending(self, stream: str) -> list[Picture]:
        """The pictures of a stream that are still to be asked, in order. Those drawn at random hold also pictures that
        were answered in another way: without them it would be no random sample."""
        answers = self.answers
        if stream == RANDOM:
            measuring = {sha256 for sha256, answer in answers.items() if answer.sampled == RANDOM}
            return [picture for picture in self.review.pictures if picture.sha256 not in measuring]
        pictures = (self.pictures[number] for number in self.review.coverage)
        return [picture for picture in pictures if picture.sha256 not in answers]

    def offer(self, page: str, request: dict[str, Any] | None) -> dict[str, Any] | None:
        """The next picture for the page; None: none is left."""
        now, answers, request = self.clock(), self.answers, request or {}
        left = None if request.get("more") else self.left(bool(request.get("finish")))
        if left == [] and not self.finished:
            left, self.may_be_finished = None, bool(self.progress and not self.progress.unread)
        elsewhere = {sha256 for sha256, (on, since) in self.shown.items() if on != page and now - since <= RESERVED_S}
        streams = Counter(answer.sampled for answer in answers.values())
        streams.update(self.offered[sha256] for sha256 in elsewhere if sha256 in self.offered)
        stream = SCHEDULE.stream(streams[RANDOM], streams[COVERAGE])
        if self.progress and self.progress.right > GOOD_LABELS:  # then a random answer brings the end nearer
            stream = RANDOM
        kinds = (stream, COVERAGE if stream == RANDOM else RANDOM, LEFT)
        asked_again = [(answer.sampled, self.by_sha256[s]) for s, answer in self.outdated.items() if s not in answers]
        rest = [(LEFT, picture) for picture in left or ()]
        others = ((kind, picture) for kind in kinds[:2] for picture in self.pending(kind)) if left != [] else ()
        for how, picture in chain(asked_again, rest, others):
            if picture.sha256 not in elsewhere:
                self.shown[picture.sha256] = page, now
                self.offered[picture.sha256] = how if how in kinds else AGAIN
                return self.describe(picture)
        return None

    def describe(self, picture: Picture) -> dict[str, Any]:
        """A picture, and how it was chosen. `likely`: with many classes, the names to begin the list with, in the order
        of the classes, which does not hint at any model's prediction."""
        classes, answer, measuring = self.review.classes, self.answers.get(picture.sha256), self.measuring
        similar = [
            {"number": other, "open": other in self.pictures and self.pictures[other].sha256 not in measuring}
            for other in picture.similar
        ]
        return {
            "number": picture.number,
            "likely": [classes[k] for k in sorted(picture.likely)] if len(classes) > BUTTONS else [],
            "similar": similar,
            "answer": format_answer(answer) if answer else "",
            "sampled": self.offered.get(picture.sha256, answer.sampled if answer else AGAIN),
        }

    def show(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.reply(page, request, self.describe(self.picture(request.get("number"))))

    def answer(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Writes answers to the disk; returns the next picture.
        `request`: `number` of the picture, if one was shown; `also`: numbers of others with the same answer; `kind`,
        one of ANSWER_KINDS, and `label`; `grid`: answered in the grid, so no next picture is returned."""
        kind, label, shown = (request.get(key) for key in ("kind", "label", "number"))
        grid, also = bool(request.get("grid")), request.get("also", [])
        require(kind in ANSWER_KINDS, "an answer is a label, none or unsure")
        require(kind != "label" or label in self.review.classes, "there is no such class")
        few = isinstance(also, list) and len(also) <= GRID_PICTURES
        require(few, f"`also` must be a list of at most {GRID_PICTURES} numbers")
        browser, who = self.sender(page, request)
        measuring = self.measuring
        others = [picture for picture in map(self.picture, also) if not is_measuring(measuring.get(picture.sha256))]
        sampled = {picture.sha256: GRID if grid else SIMILAR for picture in others}
        if shown is not None or not also:
            sha256 = self.picture(shown).sha256
            sampled[sha256] = self.how_sampled(sha256, grid)
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        text = label if kind == "label" else None
        new = [
            Answer(s, text, kind == "unsure", self.by_sha256[s].image, who, when, how, self.name_label(s))
            for s, how in sampled.items()
        ]
        answers_file.append_answers(self.path, self.review.classes, new)
        for answer in new:
            self.history[answer.sha256] = [*self.history.pop(answer.sha256, []), answer]
            self.shown.pop(answer.sha256, None)
        self.browsers[when] = browser
        self.update_effect()
        return self.reply(page, request, None if grid else self.offer(page, request))

    def name_label(self, sha256: str) -> str | None:
        """The class that the picture's label names without its answers; None: none of the classes."""
        if answer := self.measuring.get(sha256):
            return answer.model
        picture, labels = self.by_sha256[sha256], self.progress.labels if self.progress else {}
        label = labels.get(picture.number, picture.classes[REFINED])
        return None if label == NO_CLASS else self.review.classes[label]

    def how_sampled(self, sha256: str, grid: bool) -> str:
        """The field `sampled` of an answer about a picture that was shown alone. One that was drawn at random stays so,
        also when its answer is changed."""
        answer = self.measuring.get(sha256)
        if is_measuring(answer):
            return RANDOM
        if grid:
            return GRID
        return self.offered.get(sha256, answer.sampled if answer and answer.sampled in (COVERAGE, LEFT) else AGAIN)

    def undo(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Takes back the last answers of this browser, or else those of the same person in an earlier run; what was
        answered before them counts again. Shows the last of their pictures."""
        batches = self.find_batches(page, request)
        require(bool(batches), "there is no answer to take back")
        when, sha256s = batches.popitem()
        pictures = [self.by_sha256[sha256] for sha256 in sha256s]
        line = {"undone": when, "who": self.sender(page, request)[1]}
        line["when"] = datetime.now(UTC).isoformat(timespec="microseconds")
        answers_file.append(self.path, *({"image": p.image, "sha256": p.sha256} | line for p in pictures))
        for sha256 in sha256s:
            answers = self.history[sha256]
            streams = [answer.sampled for answer in answers if answer.when == when]
            if streams[-1] in (RANDOM, COVERAGE, LEFT):
                self.offered[sha256] = streams[-1]
            self.history[sha256] = left = answers_file.remove_last_answer(answers, when)
            if left and not left[-1].fits(self.review.classes):
                self.outdated[sha256] = self.history.pop(sha256)[-1]
        self.shown[sha256s[-1]] = page, self.clock()
        self.update_effect()
        return self.reply(page, request, self.describe(pictures[-1])) | {"undone": len(pictures)}

    def grid(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Unanswered pictures to which the model gives `label`, by default its most frequent class. `sort`: one of
        SORTS; "differ": only those to which zero-shot model, adapted model and refined labels give different classes.
        """
        sort, classes = request.get("sort", "sure"), self.review.classes
        require(sort in SORTS, "no such order")
        answers = self.measuring  # an outdated answer is asked for alone
        unanswered = [picture for picture in self.review.pictures if picture.sha256 not in answers]
        if sort == "differ":
            unanswered = [picture for picture in unanswered if len(set(picture.classes)) > 1]
        counts = Counter(picture.classes[MODEL] for picture in unanswered)
        label = request.get("label") or (classes[counts.most_common(1)[0][0]] if counts else classes[0])
        require(label in classes, "there is no such class")
        members = [picture for picture in unanswered if picture.classes[MODEL] == self.review.class_numbers[label]]
        members.sort(key=lambda picture: -picture.confidence if sort == "sure" else picture.confidence)
        return {
            "state": self.state(page, request),
            "label": label,
            "left": len(members),
            "counts": [counts[number] for number in range(len(classes))],
            "pictures": [
                {"number": picture.number, "predicted": [classes[number] for number in picture.classes]}
                for picture in members[:GRID_PICTURES]
            ],
        }

    def end(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The summary of the answers: rows of (kind of labels, accuracy, its interval), changed labels, commands;
        which labels nobody has to look at, and a row for each class."""
        state, progress, rows = self.state(page, request), self.progress, []
        measured = progress.accuracy if progress and self.answers else None
        if measured:
            rows = [
                ["zero-shot", *measured.zero_shot], ["the model without answers", *measured.model],
                *([["the model with answers", *measured.with_answers]] if measured.with_answers else []),
                *([["the labels", *measured.labels]] if measured.labels else []),
            ]  # fmt: skip
        return {
            "state": state, "rows": rows, "measured": measured.answers if measured else 0,
            "accepted": progress.accepted.text() if progress and progress.accepted else "",
            "classes": progress.classes if progress else [], "lights": LIGHTS,
            "changed": [progress.answers, progress.changed] if progress else None,
            "relabelled": len(self.review.relabelled(self.answers)), "commands": self.commands,
        }  # fmt: skip


def is_measuring(answer: Answer | None) -> bool:
    """Whether the picture was drawn at random when it was answered."""
    return answer is not None and answer.sampled == RANDOM


def format_answer(answer: Answer) -> str:
    return "cannot tell" if answer.unsure else answer.label or "none of the classes"
