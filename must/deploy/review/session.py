"""Who is shown which picture, and what they said: the state behind the page. No torch, no HTTP."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from must.base.parameters import require
from must.method.answers.book import FILE, Answer, append, read_answers
from must.method.answers.doubts import Doubts, progress
from must.method.answers.judge import BETTER, NONE, Verdict
from must.method.answers.questions import Picture
from must.method.answers.sampling import SamplingPlan

PATIENCE = 300.0  # seconds that a picture is kept for the person to whom it was shown
CHOICES = ("label", "none", "unsure")


class Session:
    """All methods may be called from several threads."""

    def __init__(
        self, plan: SamplingPlan | Doubts, folder: str, who: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan, self.path, self.who, self.clock = plan, Path(folder) / FILE, who, clock
        self.lock = threading.Lock()
        self.answers = read_answers(str(self.path), plan.classes)
        self.shown: dict[int, tuple[str, float]] = {}  # position -> (person's page, when)
        self.verdict = self.judge()

    def judge(self) -> Verdict | None:
        """None: nothing is decided by these answers. The ends of the gain, which take most of the time, are looked for
        once they are told."""
        if not isinstance(self.plan, SamplingPlan):
            return None
        found = self.plan.verdict(self.answers, with_ends=False)
        return self.plan.verdict(self.answers) if found.outcome == BETTER else found

    def state(self) -> dict[str, Any]:
        """What the page tells about how far it has come."""
        if isinstance(self.plan, Doubts):
            return progress(self.plan, self.answers)
        assert self.verdict is not None
        return {
            "answers": len(self.answers),
            "of": len(self.plan.pictures),
            "sure": self.verdict.sure,
            "text": in_words(self.verdict, self.plan),
        }

    def next(self, page: str) -> dict[str, Any]:
        """The first picture that nobody has answered and nobody else is looking at."""
        with self.lock:
            return {"state": self.state(), "picture": self.offer(page)}

    def offer(self, page: str) -> dict[str, Any] | None:
        now = self.clock()
        for position, picture in enumerate(self.plan.pictures):
            if picture.sha256 in self.answers:
                continue
            other, since = self.shown.get(position, ("", 0.0))
            if other in ("", page) or now - since > PATIENCE:
                self.shown[position] = page, now
                return self.describe(position)
        return None

    def describe(self, position: int) -> dict[str, Any]:
        """A picture with the candidates' names in an order that says nothing, and stays if the page is loaded again."""
        picture, names = self.plan.pictures[position], self.plan.names(position)
        order = np.random.default_rng([position, int(picture.sha256[:8], 16)]).permutation(len(names))
        return {
            "position": position,
            "number": picture.number,
            "names": [names[place] for place in order],
            "alike": list(picture.alike),
        }

    def answer(self, page: str, position: int, said: dict[str, Any]) -> dict[str, Any]:
        """Keeps an answer on the disk, and then gives the next picture.

        Raises:
            ValueError: no such picture, or no such class.
        """
        picture, line = self.begun(position)
        kind = said.get("kind")
        if kind == "label":
            require(said.get("label") in self.plan.at, "there is no such class")
            line["label"] = said["label"]
        else:
            require(kind in CHOICES, "an answer is a label, none or unsure")
            line |= {"unsure": True} if kind == "unsure" else {"label": None}
        who = str(said.get("who") or self.who)[:100]
        line |= {"who": who, "when": now(), "shown": self.describe(position)["names"], "position": position}
        with self.lock:
            append(self.path, line)
            label = line.get("label")
            self.answers[picture.sha256] = Answer(
                picture.sha256, label, kind == "unsure", picture.image, who, line["when"]
            )
            self.shown.pop(position, None)
            self.verdict = self.judge()
            return {"state": self.state(), "picture": self.offer(page)}

    def begun(self, position: int) -> tuple[Picture, dict[str, Any]]:
        """(the picture, the beginning of a line about it). Raises ValueError: there is none."""
        require(0 <= position < len(self.plan.pictures), "there is no such picture")
        picture = self.plan.pictures[position]
        return picture, {"image": picture.image, "sha256": picture.sha256}

    def undo(self, page: str, position: int, who: str) -> dict[str, Any]:
        """Takes an answer back, and shows its picture again. Raises ValueError: there is none."""
        picture, line = self.begun(position)
        with self.lock:
            if picture.sha256 in self.answers:
                line |= {"unsure": True, "undone": True, "who": (who or self.who)[:100]}
                append(self.path, line | {"when": now(), "position": position})
                del self.answers[picture.sha256]
            self.shown[position] = page, self.clock()
            self.verdict = self.judge()
            return {"state": self.state(), "picture": self.describe(position)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def in_words(found: Verdict, plan: SamplingPlan) -> str:
    """One sentence for the person who answers, in which no class and no model is named."""
    share = f"{plan.alphas[found.leading - 1]:.0%}"
    if found.outcome == BETTER:
        more = "Nothing more is needed." if found.settled else "That is decided; more answers may find a better share."
        gain = f"about {100 * found.gain:+.1f} points, and at least {100 * found.low:+.1f}, sure to 95%"
        return f"{share} of the adaptation gains {gain}. {more}"
    if found.outcome == NONE:
        return "No part of the adaptation gains a point: zero-shot is kept. Nothing more is needed."
    if found.left is None:
        return "Not decided yet; too early to say how many answers it takes."
    return f"Not decided yet; about {found.left:,} more answers."
