"""Which labels nobody has to look at, by people's answers, with 95% confidence; and how many actions are left.

`accept` finds the largest set of the surest labels for one of two promises: at most a share `risk` is wrong

- of all labels of the set, where people name what is left (SET: Candes et al. 2025, "Probably approximately correct
  labels", arXiv 2506.10908): the wrong labels are then among the accepted ones, so that these may be risk x all;
- of the accepted labels alone (ACCEPTED).

The pictures without an answer are ordered by the confidence of their labels. Their surest ones, as many as 1%, 2%, ...
of all pictures, are tested in this order, by the answers about pictures drawn at random whose labels are as sure, until
a test fails (fixed sequence testing: Angelopoulos et al. 2021, "Learn then test", arXiv 2110.01052). The tests hold at
every look, for a person who looks after each answer and stops when the result is good (`compute_p_value`), so that
labels that were accepted stay so (population.py); and where the answered pictures are a large part of all. The label
of a picture of none of the classes is wrong, and so is that of a drawn picture that nobody can tell. Pictures with
another answer, such as those answered by class, were not drawn, and count as right.

The promise is kept with a probability of 95%, provided that

- the pictures of the sample were drawn at random, whatever else is answered (population.py), and answers are right: a
  wrong one counts as a wrong label, which mostly makes the set smaller;
- labels with all answers are right at least as often, at the same rank, as those that are tested: an answered
  picture's label and rank are those without its own answer, by cross-validation. They are tested as they are now:
  labels change while answers come, and the share of broken promises at every look was measured
  (benchmarks/promise.py), not proved.

A answers about pictures drawn at random, O pictures with another answer, N pictures without one. Copies of a picture
are one picture.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from must.answers.accuracy import CONFIDENCE, share
from must.answers.population import NOTHING_GONE, Gone
from must.base.text import NONE_OF_THESE, pluralize

SET, ACCEPTED = "set", "accepted"  # what the promise is about: all labels, or the accepted ones
SCREEN_PICTURES = 24  # side by side, at most
LOOK = 0.1  # actions that it is worth to look at a picture on a screen
OVERLOOKED = 0.05  # share of the wrong labels on screens that people leave, until more is known
FEWEST_DRAWN = 20  # answers before screens are offered
STEPS = 100  # sets that are tested
PRIOR = 2.5  # divided by the risk: b of the prior Beta(1, b) of the share of wrong labels (`compute_p_value`)
GOOD_SHARE, POOR_SHARE = 0.8, 0.2  # shares of a class's labels that are accepted
LIGHTS = (
    f"Good: at least {100 * GOOD_SHARE:g} in 100 labels of the class need not be looked at. "
    f"Poor: fewer than {100 * POOR_SHARE:g} in 100. Unsure: between."
)


class Step(NamedTuple):
    """The answers above a threshold; the labels without an answer, and those with an answer that does not measure."""

    threshold: float
    answers: float
    errors: float
    labels: float = 0
    known: float = 0


@dataclass(frozen=True)
class Sample:
    """What tells how many labels are wrong. Ranks are those of `find_ranks`, by labels without the picture's own
    answer."""

    ranks: np.ndarray  # float [A], of the pictures that were drawn at random
    correct: np.ndarray  # bool [A], whether their labels are right
    known: np.ndarray  # float [O], ranks of the pictures with another answer
    gone: Gone = NOTHING_GONE
    unsure: int = 0  # of the drawn pictures, those that nobody could tell; none of them is right
    overlooked: int = 0  # wrong labels that people left on screens, as of `count_overlooked`


@dataclass(frozen=True)
class Accepted:
    """Of the `pictures`, so many are `answered`, and so many labels `accepted`: nobody has to look at them. `unsure`
    others could not be told: nothing is promised of them."""

    risk: float
    promise: str  # SET or ACCEPTED
    answers: int  # about pictures drawn at random
    pictures: int
    answered: int
    accepted: int = 0
    threshold: float | None = None  # smallest confidence that this look accepts; None: it accepts none
    unmeasured: int = 0  # pictures that the answers were not drawn from; none of their labels is accepted
    unsure: int = 0
    overlooked: int = 0  # wrong labels that people left on screens; the promise has room for them
    allowed: int = 0  # wrong labels among the accepted ones, at most
    actions: int = 0  # clicks and keys until none is left, about
    screens: bool = False  # whether it takes fewer of them to name what is left on screens than to draw more

    @property
    def left(self) -> int:
        """Pictures whose class a person still has to name."""
        return self.pictures - self.answered - self.accepted

    def to_dict(self) -> dict[str, Any]:
        """The value of `accepted` in refined.json."""
        return asdict(self) | {"left": self.left, "text": self.text()}

    def text(self) -> str:
        """A line."""
        most, added = f"at most {100 * self.risk:g} in 100", pluralize(self.unmeasured, "picture")
        besides = f", but for {self.unsure:,} that nobody could tell" if self.unsure else ""
        if self.answered == self.pictures:
            return f"All {pluralize(self.pictures, 'picture')} are answered{besides}: none is left."
        if self.promise == SET:
            later = f", {added} of them added later than the answers" if self.unmeasured else ""
            numbers = f"{self.answered:,} answered, {self.accepted:,} need not be looked at"
            left = {0: "none is left. At", 1: f"1 is left{later}. Then at"}.get(
                self.left, f"{self.left:,} are left{later}. Then at"
            )
            screens = f"; {self.overlooked:,} of them are those overlooked on screens" if self.overlooked else ""
            wrong = f"{left}{most.removeprefix('at')} of all labels are wrong, with 95% confidence{screens}."
            return f"{pluralize(self.pictures, 'picture')}{besides}: {numbers}, {wrong}"
        later = f" Of {added} that were added later: none." if self.unmeasured else ""
        what = "can be accepted without review"
        if self.accepted:
            others = f"{self.accepted:,} of the {self.pictures - self.answered:,} labels without an answer"
            return f"{others} {what}: {most} of them are wrong, with 95% confidence.{later}"
        if self.answers < (fewest := count_fewest_answers(self.risk, at_every_look=True)):
            return f"No labels {what} yet: at least {fewest} random answers must show that {most} are wrong."
        return f"No labels {what}: {pluralize(self.answers, 'random answer')} do not show that {most} are wrong."


def count_fewest_answers(risk: float, at_every_look: bool = False) -> int:
    """The answers that show a share of at most `risk` if none is wrong: 59 for 5%, and 79 at every look."""
    b, fewest = PRIOR / risk, math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-risk))
    while at_every_look and fewest * math.log1p(-risk) > math.log((1 - CONFIDENCE) * b / (b + fewest)):
        fewest += 1
    return fewest


def find_last(steps: Sequence[Step], least: int, keeps: Callable[[Step], bool]) -> Step | None:
    """The last of the steps, whose thresholds fall, before the first that does not keep the target. The first ones, of
    fewer than `least` answers or too few to pass without an error, are not tested."""
    last = None
    for step in steps:
        if step.answers < least or not keeps(step._replace(errors=0)):
            continue
        if not keeps(step):
            break
        last = step
    return last


def find_ranks(confidence: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Float [A]: the share of the images `others` [N] whose confidence is at most the image's own, `confidence` [A]."""
    return np.searchsorted(np.sort(others), confidence, side="right") / max(1, len(others))


def accept(risk: float, sample: Sample, confidence: np.ndarray, promise: str = SET, **counts: int) -> Accepted:
    """The largest set that passes, and how many actions are left about. `confidence`: float [N], of the labels of the
    pictures without an answer; `counts`: of `Accepted`, where there are other pictures besides."""
    drawn, others, ranks = len(sample.ranks), len(confidence), find_ranks(confidence, confidence)
    every = drawn - sample.unsure + len(sample.known) + others
    numbers = {"pictures": every, "answered": every - others} | counts
    room = math.floor(risk * every + 1e-9) - sample.overlooked
    last, allowed = test_sets(risk, sample, ranks, promise, room), room
    for _ in range(2 if promise == SET else 0):  # of what is left, people will overlook some
        left, wrong = count_left(sample, others, last)
        allowed = room - count_overlooked(round(left * wrong), ())
        last = test_sets(risk, sample, ranks, promise, allowed)
    found = Accepted(risk, promise, drawn, **numbers)  # type: ignore[arg-type]  # no count is a flag
    found = replace(found, overlooked=sample.overlooked, allowed=max(0, allowed))
    if promise == SET:
        plans = {0: count_left(sample, others, last)}
        for more in plan_more(drawn, others):
            later = test_sets(risk, sample, ranks, promise, allowed, more)
            plans[more] = count_left(sample, others - more, later)
        best = min(plans, key=lambda more: more + count_actions(*plans[more], LOOK))
        actions = round(best + count_actions(*plans[best]))
        found = replace(found, actions=actions, screens=drawn >= FEWEST_DRAWN and not best)
    if not last or not last.labels:
        return found
    smallest = float(confidence[ranks > last.threshold].min())
    return replace(found, accepted=round(last.labels), threshold=smallest)


def test_sets(
    risk: float, sample: Sample, label_ranks: np.ndarray, promise: str, allowed: int, more: int = 0
) -> Step | None:
    """The largest set with at most `allowed` wrong labels; None: there is none. `more`: as if so many more pictures
    were drawn, and as many of them right."""
    drawn, others, gone = len(sample.ranks), len(label_ranks), sample.gone
    every = drawn + len(sample.known) + others
    # In parts of all pictures, so that they are the same when some of what is left is named. At the end threshold 0:
    # answered pictures less sure than all others have no influence.
    sizes = np.arange(1, math.ceil(STEPS * others / max(1, every)) + 1)
    thresholds = np.maximum(0.0, 1 - sizes * every / STEPS / max(1, others))
    grown, kept = 1 + more / max(1, drawn), 1 - more / max(1, others)

    def above(ranks: np.ndarray) -> np.ndarray:
        return len(ranks) - np.searchsorted(np.sort(ranks), thresholds, side="right")

    parts = sample.ranks, sample.ranks[~sample.correct], label_ranks, sample.known
    answers, errors, labels, known = map(above, parts)
    rows = np.stack([answers * grown, errors * grown, labels * kept, known + gone.others], 1).tolist()
    steps = [Step(threshold, *row) for threshold, row in zip(thresholds.tolist(), rows, strict=True)]

    def keeps(step: Step) -> bool:
        most = allowed if promise == SET else math.floor(risk * step.labels + 1e-9)
        answers, errors = step.answers + gone.drawn, step.errors + gone.drawn
        if step.labels <= most or most < 0:
            return most >= 0
        return compute_p_value(errors, answers, answers + step.labels + step.known, most, risk) <= 1 - CONFIDENCE

    return find_last(steps, 0, keeps)


def count_left(sample: Sample, others: int, last: Step | None) -> tuple[float, float]:
    """(pictures without an answer that are not accepted; the share of their labels that is wrong)."""
    less_sure = sample.ranks <= (last.threshold if last else 1.0)
    wrong = (float((~sample.correct[less_sure]).sum()) + 1) / (float(less_sure.sum()) + 2)
    return max(0.0, others - (last.labels if last else 0)), wrong


def count_actions(left: float, wrong: float, look: float = 0.0) -> float:
    """Clicks and keys that name so many pictures on screens, about: one for each wrong label, and one for each screen;
    and `look` for each picture."""
    return left * (wrong + 1 / SCREEN_PICTURES + look)


def plan_more(drawn: int, others: int) -> list[int]:
    """Numbers of further questions at random."""
    return [more for part in (0.1, 0.25, 0.5, 1, 2, 4) if 0 < (more := round(part * max(drawn, 20))) < others]


def count_overlooked(found: int, noticed: Sequence[bool]) -> int:
    """How many wrong labels people left on screens, beside those that they found. `noticed`: of known wrong ones, which
    were shown to measure it. Rather too many than too few: OVERLOOKED of all wrong ones at least."""
    missed = len(noticed) - sum(noticed)
    part = max(OVERLOOKED, (missed + 1 + math.sqrt(missed)) / (len(noticed) + 1 / OVERLOOKED))
    return math.ceil(found * part / (1 - part))


def compute_p_value(errors: float, answers: float, pictures: float, allowed: int, risk: float) -> float:
    """How well so few `errors` among `answers` drawn at random from `pictures` fit more than `allowed` wrong labels
    among the other pictures. Where there are more, it is above 0.05 at all looks together with a probability of 95%.

    It is the ratio of prior and posterior probability of that number of wrong labels, whose prior is beta-binomial
    (Waudby-Smith and Ramdas 2020, "Confidence sequences for sampling without replacement", arXiv 2006.04347)."""
    wrong, right = errors + allowed + 1, answers - errors
    if allowed >= pictures - answers:
        return 0.0
    if errors * pictures >= wrong * answers:
        return 1.0
    b = PRIOR / risk
    drawn = log_choose(wrong, errors) + log_choose(pictures - wrong, right) - log_choose(pictures, answers)
    by_prior = math.log(b) + math.lgamma(answers + 1) - math.lgamma(right + 1)
    by_prior += math.lgamma(right + b) - math.lgamma(answers + 1 + b)
    return min(1.0, math.exp(drawn - by_prior))


def log_choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def describe_classes(
    classes: list[str],
    labels: np.ndarray,
    accepted: np.ndarray | None,
    judged: np.ndarray,
    truth: np.ndarray,
) -> list[tuple[int, dict[str, Any]]]:
    """(class number, row) of each class that has images, the one with the smallest accepted share first.

    Args:
        labels: int64 [N], of the images without an answer; `accepted`: bool [N]; None where nothing can be promised.
        judged: int64 [A], labels without the image's own answer; `truth`: int64 [A], the answers, -1 for none of the
            classes.
    """
    names, rows = [*classes, NONE_OF_THESE], list[tuple[int, dict[str, Any]]]()
    for number in np.unique(labels).tolist():
        mine, answered = labels == number, judged == number
        images, count = int(mine.sum()), None if accepted is None else int((mine & accepted).sum())
        wrong = np.bincount(truth[answered & (truth != number) & (truth >= -1)] % len(names), minlength=1)
        rows.append((number, {
            "class": names[number], "light": name_light(count, images), "images": images, "accepted": count,
            "answers": int(answered.sum()),
            "right": [round(end, 4) for end in share(truth[answered] == number)] if answered.any() else None,
            "confused_with": names[int(wrong.argmax())] if wrong.any() else "",
        }))  # fmt: skip
    return sorted(rows, key=lambda pair: (pair[1]["accepted"] or 0) / pair[1]["images"])


def name_light(accepted: int | None, images: int) -> str:
    """Good, unsure or poor, as LIGHTS says; "" where nothing can be promised."""
    if accepted is None:
        return ""
    share_accepted = accepted / images
    return "good" if share_accepted >= GOOD_SHARE else "poor" if share_accepted < POOR_SHARE else "unsure"
