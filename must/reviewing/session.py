"""The state behind the page: which page shows which picture, and the answers. No torch, no HTTP."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from must.answers import answers_file
from must.answers.answers_file import AGAIN, FOLDER, LEFT, NO_CLASS, RANDOM, SCREEN, Answer
from must.answers.estimate import LIGHTS, SCREEN_PICTURES
from must.answers.review import Picture, Review
from must.base.parameters import require
from must.config.work import ANSWERS_FILE
from must.reviewing.progress import CHANGED, Progress, describe_answers

if TYPE_CHECKING:
    from must.reviewing.prepare import AnswerEffect

FAR_OFF_TEXT = (
    "Your answers and the model agree in almost nothing: are the names of the classes those of these pictures?"
)
RESERVED_S, RESERVED_SCREEN_S = 15.0, 180.0  # seconds that pictures are reserved for the page that shows them
BUTTONS = 30  # classes up to which each has a button
METHODS = ("show", "answer", "undo", "leave")
ACTIONS = ("next", "end", *METHODS)
ANSWER_KINDS = ("label", "none", "unsure")
WAIT = 5.0  # seconds to wait until the effect of the last answers is computed, at most
LAG = 1.0  # seconds by which answers may outrun the count
SINGLE = (RANDOM, LEFT, FOLDER, AGAIN)  # how pictures are chosen that are shown alone
LARGEST_SCREEN = 60  # pictures of a request at most
LEFT_TIMES = 2  # one by one, what is left is asked about once there are so many times as many answers
FIRST_CHECK = 2  # screens before one has a picture under a wrong label
RECENT = 12  # answers that the page shows
FEWEST_ANSWERS, FAR_OFF = 15, 0.2  # answers, and the upper end of the share of right ones, that question the names


class Session:
    """`effect` computes the effect of the answers, if that is shown. Only `act` and `set_review` are thread-safe.

    The requests of a page hold `page`, the tab, for which pictures are reserved; `browser`, whose answers an undo takes
    back; `who`, the person's name; and `mode`: "one" picture at a time, "screens" of one label, or "", which is what
    takes fewer actions.
    """

    def __init__(
        self, review: Review, folder: str, who: str, effect: "AnswerEffect | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.path, self.who, self.clock = Path(folder) / ANSWERS_FILE, who, clock
        self.commands, self.change = list[str](), dict[str, str]()  # what to type next; as of `describe_change`
        self.misplaced = dict[str, tuple[str, str]]()  # as of `read_misplaced`
        self.shown: dict[str, tuple[str, float]] = {}  # sha256 -> (page, time until which it is reserved)
        self.offered: dict[str, str] = {}  # sha256 -> how its picture was chosen
        self.checks: dict[str, int] = {}  # page -> number of a known picture under a wrong label on its screen
        self.lock, self.screens = threading.Lock(), 0  # screens that were answered
        self.pictures: dict[int, Picture] = {}  # of this review and of those before, which pages may still show
        self.set_review(review, effect)
        self.browsers: dict[str, str] = {}  # time of answers in this run -> the browser that gave them

    def set_review(self, review: Review, effect: "AnswerEffect | None") -> None:
        """Replaces the review by one of the same model, of the same images or of others."""
        with self.lock:
            self.review, self.effect = review, effect
            self.pictures |= {picture.number: picture for picture in review.pictures}
            self.by_sha256 = {picture.sha256: picture for picture in self.pictures.values()}
            history = answers_file.read_history(str(self.path.parent))
            # Those that do not fit the classes are asked again, first of all.
            self.history = {sha256: answers for sha256, answers in history.items() if sha256 in self.by_sha256}
            self.update_effect()

    def act(self, action: str, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """One of ACTIONS: the method of this name, if there is one, then what the page shows."""
        with self.lock:
            done: dict[str, Any] = getattr(self, action)(page, request) if action in METHODS else {}
        if action == "leave":
            return done
        soon = action == "end" or "screen" in request or len(self.left or ()) == 1
        if self.effect is not None and (soon or self.effect.age > LAG):
            self.effect.wait(WAIT)  # without the lock: other pages are served meanwhile
        with self.lock:
            if action == "end":
                return self.summarize(page, request)
            shown = done.pop("show", None)
            if shown or "missed" in done:  # then the page keeps its screen
                offered = {"picture": shown and self.describe(shown)}
            else:
                offered = self.offer(page, request)
            return {"state": self.state(page, request), "picture": None, "screen": None} | offered | done

    @property
    def last(self) -> dict[str, Answer]:
        """sha256 -> the last answer, whether it fits the classes or not."""
        return {sha256: answers[-1] for sha256, answers in self.history.items() if answers}

    @property
    def answers(self) -> dict[str, Answer]:
        """sha256 -> the answer that counts."""
        numbers = self.review.class_numbers
        return {sha256: answer for sha256, answer in self.last.items() if answer.fits(numbers)}

    def update_effect(self) -> None:
        if self.effect is not None:
            self.effect.update()

    @property
    def progress(self) -> Progress | None:
        return self.effect.progress if self.effect is not None else None

    @property
    def finished(self) -> bool:
        """Whether nobody has to name a picture any more, of all that there are."""
        progress, current = self.progress, self.effect is None or self.effect.is_current
        return current and bool(progress and not progress.unread) and self.left == []

    @property
    def left(self) -> list[Picture] | None:
        """The pictures that a person still has to name, the least sure label first; None where nothing is promised."""
        progress, answers = self.progress, self.answers
        if not answers or progress is None or progress.accepted is None or not progress.accepted.accepted:
            return None
        pictures = [self.pictures[number] for number in progress.left if number in self.pictures]
        return [picture for picture in pictures if picture.sha256 not in answers]

    def state(self, page: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The progress that the page shows. `text`: what the answers measure and have done; `set`: how many pictures
        are named, sure, and left; None where nothing is promised; `actions`: that are left, about; `labels`: the share
        of right labels with its interval; `true`: of zero-shot and of the labels, where it is known."""
        answers, progress = self.answers, self.progress if self.answers else None
        accuracy, counts = (progress.accuracy, progress.accepted) if progress else (None, None)
        unread, elsewhere = (progress.unread, progress.elsewhere) if progress else (0, 0)
        batches, unsure = self.find_batches(page, request), sum(answer.unsure for answer in answers.values())
        times = [(sha256, when) for when, sha256s in batches.items() for sha256 in sha256s]
        recent = [sha256 for sha256, when in times if sha256 in answers and answers[sha256].when == when]
        far_off = accuracy and accuracy.answers >= FEWEST_ANSWERS and accuracy.model.high < FAR_OFF
        return {
            "answers": len(answers) + elsewhere,
            "of": len(self.review.pictures) + elsewhere + unread,
            "text": self.text(),
            "counting": bool(answers) and progress is None,
            "problem": CHANGED if self.effect and self.effect.changed else FAR_OFF_TEXT if far_off else "",
            "set": {"named": counts.answered + elsewhere, "sure": counts.accepted, "left": counts.left + unread}
            if counts and counts.accepted
            else None,
            "actions": counts.actions if counts and counts.accepted else None,
            "finished": self.finished,
            "unsure": unsure,
            "labels": accuracy and accuracy.labels,
            "true": self.progress and self.progress.true,
            "undo": bool(batches),
            "recent": [
                {"number": self.by_sha256[sha256].number, "answer": format_answer(answers[sha256])}
                for sha256 in reversed(recent[-RECENT:])
            ],
        }

    def text(self) -> str:
        """What the answers measure, and what they have done; of those before the last ones while these are counted."""
        return describe_answers(self.answers.values(), self.progress)

    def find_batches(self, page: str, request: dict[str, Any] | None) -> dict[str, list[str]]:
        """{time: sha256s} of the answers by this browser, or of an earlier run by this person; those of one press of a
        button have one time. Corrections made elsewhere are left out: an undo must not take back all of them."""
        browser, who = self.sender(page, request)
        batches = defaultdict[str, dict[str, None]](dict)
        for sha256, answers in self.history.items():
            for answer in answers:
                sender = self.browsers.get(answer.when)  # None: in an earlier run
                mine = bool(who) and answer.who == who if sender is None else sender == browser
                if mine and answer.when and answer.sampled != answers_file.ADDED:
                    batches[answer.when][sha256] = None
        return {when: list(sha256s) for when, sha256s in sorted(batches.items())}

    def sender(self, page: str, request: dict[str, Any] | None) -> tuple[str, str]:
        """(browser, name of the person)."""
        request = request or {}
        return str(request.get("browser") or page)[:64], str(request.get("who") or self.who)[:100]

    def picture(self, number: Any) -> Picture:
        require(type(number) is int and number in self.pictures, "there is no such picture")
        return self.pictures[number]

    def leave(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """The page is closed: other pages may show its pictures."""
        self.shown = {sha256: shown for sha256, shown in self.shown.items() if shown[0] != page}
        return {}

    def show(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"show": self.picture(request.get("number"))}

    def offer(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """A picture, or a screen, for the page; neither: the set is finished, or all pictures are answered."""
        now, answers, mode = self.clock(), self.answers, request.get("mode", "")
        taken = {sha256 for sha256, (on, until) in self.shown.items() if on != page and now <= until}
        again = [self.by_sha256[sha256] for sha256 in self.last if sha256 not in answers and sha256 not in taken]
        doubted = [self.by_sha256[one] for one in self.misplaced if not mode and one not in {*answers, *taken}]
        if self.finished and not request.get("more") and not again and not doubted:
            return {}
        counts, left = self.progress and self.progress.accepted, self.left or []
        screens = mode == "screens" or (not mode and bool(counts and counts.screens and left))
        if screens and not again and not doubted and (screen := self.make_screen(page, request, taken)):
            return {"screen": screen}
        rest = left if LEFT_TIMES * len(left) <= len(answers) else []
        pictures = [(AGAIN, again), (FOLDER, doubted), (LEFT, rest), (RANDOM, self.review.pictures)]
        for how, picture in ((how, picture) for how, part in pictures for picture in part):
            if how == AGAIN or (picture.sha256 not in answers and picture.sha256 not in taken):
                self.shown[picture.sha256] = page, now + RESERVED_S
                self.offered[picture.sha256] = how
                return {"picture": self.describe(picture)}
        return {}

    def make_screen(self, page: str, request: dict[str, Any], taken: set[str]) -> dict[str, Any] | None:
        """Pictures without an answer that have one label now: of the class that is asked for, or else of the class with
        the most pictures that are left. Those of which another class is most probable after it come together. From
        the third screen on, one more, whose class is known, is among them under a wrong label."""
        classes, asked = self.review.classes, request.get("label")
        require(asked is None or asked in classes, "there is no such class")
        left = self.left if asked is None else None
        taken = taken.union(self.last)
        free = [picture for picture in (self.review.pictures if left is None else left) if picture.sha256 not in taken]
        labels = {picture.number: self.find_label(picture) for picture in free}
        counts = Counter(label for label, _ in labels.values() if label != NO_CLASS)
        if not counts:
            return None
        label = self.review.class_numbers[asked] if asked else counts.most_common(1)[0][0]
        mine = [picture for picture in free if labels[picture.number][0] == label]
        others = Counter(labels[picture.number][1] for picture in mine)
        mine.sort(key=lambda picture: (-others[labels[picture.number][1]], labels[picture.number][1]))
        numbers = [picture.number for picture in mine[: SCREEN_PICTURES - 1]]
        self.checks.pop(page, None)
        if self.screens >= FIRST_CHECK and numbers and (check := self.find_check(label)):
            self.checks[page] = check.number
            numbers.append(check.number)
        for number in numbers:
            self.shown[self.pictures[number].sha256] = page, self.clock() + RESERVED_SCREEN_S
        if self.effect is not None:
            numbers = self.effect.arrange(numbers)
        pictures = [{"number": number, "image": self.pictures[number].image} for number in numbers]
        shares = [[classes[number], count] for number, count in sorted(counts.items())]
        return {"label": classes[label], "left": counts[label], "classes": shares, "pictures": pictures}

    def find_label(self, picture: Picture) -> tuple[int, int]:
        """Its label now, and the most probable other class."""
        labels = self.progress.labels if self.progress else {}
        other = next((number for number in picture.likely if number != picture.label), picture.label)
        return labels.get(picture.number, (picture.label, other))

    def find_check(self, label: int) -> Picture | None:
        """A picture of another class than `label` by a single answer; one that the model took for it, or could, first.
        Those that were shown less often come first."""
        name = self.review.classes[label]
        known = [
            (len(answer.noticed), answer.model != name, label not in self.by_sha256[sha256].likely[:3], sha256)
            for sha256, answer in self.answers.items()
            if answer.sampled in SINGLE and answer.label not in (None, name)
        ]
        return self.by_sha256[min(known)[-1]] if known else None

    def describe(self, picture: Picture) -> dict[str, Any]:
        """A picture, and how it was chosen. `likely`: with many classes, the names to begin the list with, in the order
        of the classes, which hints at no model's prediction. `folder`: where it is wrong, as of `read_misplaced`."""
        classes, answer = self.review.classes, self.answers.get(picture.sha256)
        sampled = self.how_sampled(picture.sha256)
        return {
            "number": picture.number,
            "image": picture.image,
            "likely": [classes[k] for k in sorted(picture.likely)] if len(classes) > BUTTONS else [],
            "answer": format_answer(answer) if answer else "",
            "sampled": sampled,
            "folder": self.misplaced.get(picture.sha256) if sampled == FOLDER else None,
        }

    def answer(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Writes answers to the disk. `request`: `number` of the picture that was shown alone, `kind`, one of
        ANSWER_KINDS, and `label`; or `screen`: [[kind, label, numbers], ...] of all pictures of a screen, whose label
        is `right`; where the picture under a wrong label was left so, nothing is written, and `missed` is its number.
        """
        screen, new, last = request.get("screen"), dict[str, Answer](), self.last
        alone = [[request.get("kind"), request.get("label"), [request.get("number")]]]
        now, (browser, who) = datetime.now(UTC).isoformat(timespec="microseconds"), self.sender(page, request)
        check, noticed = None if screen is None else self.checks.get(page), None
        for picture, kind, label in self.parse_answers(alone if screen is None else screen):
            before, how = last.get(picture.sha256), self.how_sampled(picture.sha256) if screen is None else SCREEN
            if picture.number == check:
                noticed = (kind, label) != ("label", request.get("right"))
            elif screen is None or not before:
                drawn, seen = (before.drawn, before.noticed) if before else (False, ())
                new[picture.sha256] = Answer(
                    picture.sha256, label if kind == "label" else None, kind == "unsure", picture.image, who, now, how,
                    self.name_label(picture), drawn, seen,
                )  # fmt: skip
        if check is not None and noticed is not None:
            self.note_check(self.pictures[check], noticed, who, now)
            del self.checks[page]
            if not noticed:
                return {"missed": check}
        self.write(new, now, browser)
        self.screens += screen is not None
        return {}

    def parse_answers(self, groups: Any) -> list[tuple[Picture, str, str | None]]:
        """Raises UserError: they are not [[kind, label, numbers], ...] of this review."""
        whole = isinstance(groups, list) and len(groups) <= LARGEST_SCREEN
        require(whole and all(isinstance(group, list) and len(group) == 3 for group in groups), "no list of answers")
        found = list[tuple[Picture, str, str | None]]()
        for kind, label, numbers in groups:
            require(kind in ANSWER_KINDS, "an answer is a label, none or unsure")
            require(kind != "label" or label in self.review.classes, "there is no such class")
            few = isinstance(numbers, list) and len(numbers) <= LARGEST_SCREEN
            require(few, f"pictures must be a list of at most {LARGEST_SCREEN} numbers")
            found += [(self.picture(number), kind, label) for number in numbers]
        return found

    def write(self, new: dict[str, Answer], when: str, browser: str) -> None:
        """Also marks as drawn what was answered before its turn in the random order, now that this has come."""
        answers_file.append_answers(self.path, self.review.classes, new.values())
        for sha256, answer in new.items():
            self.history[sha256] = [*self.history.pop(sha256, []), answer]
            self.shown.pop(sha256, None)
        self.browsers[when] = browser
        answers, turn = self.answers, list[Answer]()
        for picture in self.review.pictures:
            if (before := answers.get(picture.sha256)) is None:
                break
            if not before.measures:
                turn.append(replace(before, drawn=True))
        answers_file.append_answers(self.path, self.review.classes, turn)
        for answer in turn:
            self.history[answer.sha256].append(answer)
        self.update_effect()

    def note_check(self, picture: Picture, noticed: bool, who: str, when: str) -> None:
        """Writes whether a person noticed the known picture under a wrong label."""
        if answers := self.history.get(picture.sha256):
            line = {"image": picture.image, "sha256": picture.sha256, "noticed": noticed, "who": who, "when": when}
            answers_file.append(self.path, line)
            answers[-1] = answers_file.add_check(answers[-1], noticed)

    def name_label(self, picture: Picture) -> str | None:
        """The class that the picture's label names without its answers; None: none of the classes."""
        if answer := self.last.get(picture.sha256):
            return answer.model
        label, _ = self.find_label(picture)
        return None if label == NO_CLASS else self.review.classes[label]

    def how_sampled(self, sha256: str) -> str:
        """The field `sampled` of an answer about a picture that was shown alone. One that was drawn at random stays so,
        also when its answer is changed."""
        before = self.last.get(sha256)
        return RANDOM if before and before.measures else self.offered.get(sha256, AGAIN)

    def undo(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """Takes back the last answers of this browser, or else those of the same person in an earlier run; what was
        answered before them counts again. Shows the last of their pictures, if it was shown alone."""
        batches = self.find_batches(page, request)
        require(bool(batches), "there is no answer to take back")
        when, sha256s = batches.popitem()
        pictures = [self.by_sha256[sha256] for sha256 in sha256s]
        line = {"undone": when, "who": self.sender(page, request)[1]}
        line["when"] = datetime.now(UTC).isoformat(timespec="microseconds")
        answers_file.append(self.path, *({"image": p.image, "sha256": p.sha256} | line for p in pictures))
        how = SCREEN
        for sha256 in sha256s:
            how = next(answer.sampled for answer in self.history[sha256] if answer.when == when)
            if how != SCREEN:
                self.offered[sha256] = how
            self.history[sha256] = answers_file.remove_answer(self.history[sha256], when)
        self.update_effect()
        undone = {"undone": len(pictures)}
        if how == SCREEN:
            return undone
        self.shown[sha256s[-1]] = page, self.clock() + RESERVED_S
        return undone | {"show": pictures[-1]}

    def summarize(self, page: str, request: dict[str, Any]) -> dict[str, Any]:
        """The summary of the answers: rows of (kind of labels, accuracy, its interval), changed labels, commands;
        which labels nobody has to look at, and a row for each class."""
        progress, rows = self.progress if self.answers else None, []
        measured = progress.accuracy if progress else None
        if measured:
            named = [
                ("the labels that you get", measured.labels), ("zero-shot", measured.zero_shot),
                ("the model without answers", measured.model), ("the model with answers", measured.with_answers),
            ]  # fmt: skip
            rows = [[name, *part] for name, part in named if part]
        corrected = sum(answer.corrects and not answer.unsure for answer in self.answers.values())
        return {
            "state": self.state(page, request), "rows": rows, "measured": measured.answers if measured else 0,
            "accepted": progress.accepted.text() if progress and progress.accepted else "",
            "classes": progress.classes if progress else [], "lights": LIGHTS,
            "changed": [progress.answers, progress.changed] if progress else None,
            "relabelled": corrected, "commands": self.commands,
        }  # fmt: skip


def format_answer(answer: Answer) -> str:
    return "cannot tell" if answer.unsure else answer.label or "none of the classes"
