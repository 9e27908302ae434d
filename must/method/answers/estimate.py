"""What people's answers say, with 95% confidence: accuracies, which labels nobody has to look at, and when no class is
named.

`accept` finds the largest set of the surest labels for one of two promises: at most a share `risk` is wrong

- of all labels of the set, where people name what is left (SET: Candes et al. 2025, "Probably approximately correct
  labels", arXiv 2506.10908): the wrong labels are then among the accepted ones, so that these may be risk x all;
- of the accepted labels alone (ACCEPTED).

`choose_abstention`, in a similar way, finds the probability below which no class should be named.

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
from typing import Any, NamedTuple, Self

import numpy as np

from must.base.text import NONE_OF_THESE, pluralize
from must.method.answers.population import NOTHING_GONE, Gone

Z_95 = 1.96  # standard errors of a 95% interval
CONFIDENCE = 0.95  # that the promise holds
SET, ACCEPTED = "set", "accepted"  # what the promise is about: all labels, or the accepted ones
STEPS, THRESHOLDS_TRIED = 100, 100  # sets, and thresholds, that are tested
ROOM = 1e-4  # a threshold is at most so much below the lowest probability that is to reach it
PRIOR = 2.5  # divided by the risk: b of the prior Beta(1, b) of the share of wrong labels (`compute_p_value`)
GOOD_SHARE, POOR_SHARE = 0.8, 0.2  # shares of a class's labels that are accepted
LIGHTS = (
    f"Good: at least {100 * GOOD_SHARE:g} in 100 labels of the class need not be looked at. "
    f"Poor: fewer than {100 * POOR_SHARE:g} in 100. Unsure: between."
)


class Share(NamedTuple):
    """From 0 to 1; a difference from -1 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracies by answers about pictures drawn at random. `model`: before any answer; `refined`: of its refined
    labels; `with_answers`: of the model with the answers in it, by cross-validation. `gain`: over the zero-shot model,
    paired, of the model with answers if there is one, else of the model. `labels`: of all labels of the set, `own` of
    which are answers and count as right, the others as they are without their own answer. `unmeasured`: pictures that
    these answers were not drawn from, such as those that were added later."""

    answers: int
    zero_shot: Share
    model: Share
    gain: Share
    refined: Share | None = None
    with_answers: Share | None = None
    unmeasured: int = 0
    labels: Share | None = None
    own: int = 0

    @classmethod
    def from_correct(
        cls,
        zero_shot: np.ndarray,
        model: np.ndarray,
        refined: np.ndarray | None = None,
        with_answers: np.ndarray | None = None,
        unmeasured: int = 0,
    ) -> Self:
        """From bool [A]: whether each model is right about each answered picture."""
        first, second = (None if right is None else share(right) for right in (refined, with_answers))
        gain = compare_paired_answers(zero_shot, model if with_answers is None else with_answers)
        return cls(len(model), share(zero_shot), share(model), gain, first, second, unmeasured)

    def with_labels(self, right: np.ndarray, own: int, others: int) -> Self:
        """With the accuracy of all labels of the set: of `own` answers and `others`. `right`: bool [A], whether the
        labels of the pictures drawn at random are right without their own answer."""
        found, pictures = share(right), max(1, own + others)
        return replace(self, labels=Share(*((own + others * end) / pictures for end in found)), own=own)

    @property
    def better(self) -> bool | None:
        """Whether the gain shows that the model is better than zero-shot; None: not decided. Of people who look after
        every answer about a model that is not better, 2 in 100 see a gain within 34 answers, and 5 within 74."""
        return True if self.gain.low > 0 else False if self.gain.high < 0 else None

    @property
    def verdict(self) -> str:
        """`better` in a sentence."""
        low, high = (f"{100 * end:+.1f}".replace("-", "\N{MINUS SIGN}") for end in self.gain[1:])
        between = f"its gain is between {low} and {high} points"
        if self.better is None:
            return f"Not decided yet: {between}."
        return f"{'Yes, the model is better than zero-shot' if self.better else 'No, zero-shot is better'}: {between}."

    def text(self) -> str:
        """One line for the log."""
        parts = [
            ("zero-shot", self.zero_shot), ("the model", self.model), ("refined labels", self.refined),
            ("the model with answers", self.with_answers), ("the labels", self.labels),
        ]  # fmt: skip
        shares = [f"{name} {part.value:.1%} ({part.low:.0%} to {part.high:.0%})" for name, part in parts if part]
        if self.labels:
            shares[-1] += f", {self.own:,} of them answers"
        gain = f"gain of {parts[3][0] if self.with_answers else parts[1][0]} {100 * self.gain.value:+.1f} points"
        between = f"({100 * self.gain.low:+.1f} to {100 * self.gain.high:+.1f})"
        return f"{pluralize(self.answers, 'answer')}: {', '.join(shares)}; {gain} {between}{self.limit}"

    @property
    def limit(self) -> str:
        """Which pictures the numbers say nothing about; '' if they are about all."""
        others = pluralize(self.unmeasured, "picture")
        return f"; not measured: {others} that were added later" if self.unmeasured else ""


def share(right: np.ndarray) -> Share:
    """The mean of bool [A] with Wilson's interval (1927)."""
    count = len(right)
    if not count:
        return Share(0.0, 0.0, 1.0)
    mean = float(right.mean())
    z, scale = Z_95, 1 + Z_95**2 / count
    middle = (mean + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return Share(mean, max(0.0, middle - half), min(1.0, middle + half))


def compare_paired_answers(before: np.ndarray, after: np.ndarray, z: float = Z_95) -> Share:
    """Mean of `after` - `before`, bool [A] of the same images, with an interval of `z` standard errors (Bonett and
    Price 2012, valid for few images too)."""
    count = len(before)
    if not count:
        return Share(0.0, -1.0, 1.0)
    won, lost = (int((first & ~second).sum()) + 1 for first, second in ((after, before), (before, after)))
    middle = (won - lost) / (count + 2)
    half = z * math.sqrt(max((won + lost) / (count + 2) - middle**2, 0.0) / (count + 2))
    return Share((won - lost) / count, max(-1.0, middle - half), min(1.0, middle + half))


def compute_binomial_tail(errors: int, images: int, rate: float) -> float:
    """P(at most `errors` of `images`), computed in logarithms: exact for a million images too."""
    if rate <= 0 or rate >= 1:
        return 1.0 if rate <= 0 else 0.0
    k = np.arange(errors + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])
    terms = log_factorial[images] - log_factorial[k] - log_factorial[images - k]
    terms = terms + k * math.log(rate) + (images - k) * math.log1p(-rate)
    largest = terms.max()
    return float(min(1.0, math.exp(largest) * np.exp(terms - largest).sum()))


class Step(NamedTuple):
    """The answers above a threshold; the labels without an answer, and those with an answer that does not measure."""

    threshold: float
    answers: int
    errors: int
    labels: int = 0
    known: int = 0


@dataclass(frozen=True)
class Sample:
    """What tells how many labels are wrong. Ranks are those of `find_ranks`, by labels without the picture's own
    answer."""

    ranks: np.ndarray  # float [A], of the pictures that were drawn at random
    correct: np.ndarray  # bool [A], whether their labels are right
    known: np.ndarray  # float [O], ranks of the pictures with another answer
    gone: Gone = NOTHING_GONE
    unsure: int = 0  # of the drawn pictures, those that nobody could tell; none of them is right


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
            wrong = f"{left}{most.removeprefix('at')} of all labels are wrong, with 95% confidence."
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


def choose_first_count(answers: int, risk: float) -> int:
    """Answers of the first test: enough to pass with a few errors. Independent of the answers' content."""
    fewest = count_fewest_answers(risk)
    return min(3 * fewest, max(fewest, 2 * answers // 5))


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
    """The largest set that passes. `confidence`: float [N], of the labels of the pictures without an answer; `counts`:
    of `Accepted`, where there are other pictures besides."""
    drawn, others, gone = len(sample.ranks), len(confidence), sample.gone
    every = drawn - sample.unsure + len(sample.known) + others
    # In parts of all pictures, so that they are the same when some of what is left is named. At the end threshold 0:
    # answered pictures less sure than all others have no influence.
    sizes = np.arange(1, math.ceil(STEPS * others / max(1, every)) + 1)
    thresholds = np.maximum(0.0, 1 - sizes * every / STEPS / max(1, others))
    label_ranks = find_ranks(confidence, confidence)

    def above(ranks: np.ndarray) -> np.ndarray:
        return len(ranks) - np.searchsorted(np.sort(ranks), thresholds, side="right")

    parts = sample.ranks, sample.ranks[~sample.correct], label_ranks, sample.known
    answers, errors, labels, known = map(above, parts)
    rows = np.stack([answers, errors, labels, known + gone.others], 1).tolist()
    steps = [Step(threshold, *row) for threshold, row in zip(thresholds.tolist(), rows, strict=True)]

    def keeps(step: Step) -> bool:
        allowed = math.floor(risk * (every if promise == SET else step.labels) + 1e-9)
        answers, errors = step.answers + gone.drawn, step.errors + gone.drawn
        pictures = answers + step.labels + step.known
        return step.labels <= allowed or compute_p_value(errors, answers, pictures, allowed, risk) <= 1 - CONFIDENCE

    numbers = {"pictures": every, "answered": every - others} | counts
    last = find_last(steps, 0, keeps)
    if not last or not last.labels:
        return Accepted(risk, promise, drawn, **numbers)
    smallest = float(confidence[label_ranks > last.threshold].min())
    return Accepted(risk, promise, drawn, **numbers, accepted=last.labels, threshold=smallest)


def compute_p_value(errors: int, answers: int, pictures: int, allowed: int, risk: float) -> float:
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


def log_choose(n: int, k: int) -> float:
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


@dataclass(frozen=True)
class Abstention:
    """The probability below which no class should be named.

    Risk is the share of wrong classes among the images that get one, coverage the share of images that get one. The
    lowest threshold whose risk is at most the target is chosen: it has the largest coverage. The risk at a threshold is
    bounded from above with 95% confidence (Clopper and Pearson 1934), and thresholds are tried from the highest down
    until one fails, so that the bound holds for the chosen one."""

    target: float
    by: str = "none"  # labels or answers
    threshold: float | None = None  # None: there is no such threshold, and `reason` says why
    coverage: float | None = None
    risk: float | None = None
    bound: float | None = None
    reason: str = ""
    images: int = 0


def choose_abstention(
    target: float, confidence: np.ndarray, correct: np.ndarray, by: str = "labels", named: np.ndarray | None = None
) -> Abstention:
    """From the top probabilities [N] of images with labels, or with answers drawn at random; `correct`: bool [N];
    `named`: bool [N], those that get a class without a threshold; None: all."""
    every = len(confidence)
    if named is not None:
        confidence, correct = confidence[named], correct[named]
    images = len(confidence)
    if not images:
        return Abstention(target, reason="no image gets a class" if every else "needs labels of images at random")
    order = np.argsort(-confidence, kind="stable")
    wrong = np.concatenate([[0], np.cumsum(~correct[order])])
    thresholds = np.unique(np.quantile(confidence, np.linspace(0, 1, THRESHOLDS_TRIED)))[::-1]
    counts = [int((confidence >= threshold).sum()) for threshold in thresholds]
    steps = [Step(float(t), count, int(wrong[count])) for t, count in zip(thresholds, counts, strict=True)]
    last = find_last(
        steps, choose_first_count(images, target), lambda step: compute_upper_bound(step.errors, step.answers) <= target
    )
    if not last:
        reason = "too few labels, or too many wrong classes among the surest images"
        return Abstention(target, reason=reason, images=images)
    risk, bound = last.errors / last.answers, compute_upper_bound(last.errors, last.answers)
    threshold = place_threshold(*np.split(confidence[order], [last.answers]))
    return Abstention(target, by, threshold, last.answers / every, risk, bound, "", images)


def place_threshold(named: np.ndarray, others: np.ndarray) -> float:
    """Half-way between the probabilities of the images that get a class and the next lower one, at most ROOM below the
    first: other hardware and batch sizes change probabilities by millionths, and must not change who gets a class."""
    lowest = float(named.min())
    return max(0.0, (lowest + float(others.max(initial=lowest - 2 * ROOM))) / 2)


def compute_upper_bound(errors: int, images: int) -> float:
    """Upper confidence bound of the error rate: the rate with P(at most `errors` of `images`) = 1 - CONFIDENCE."""
    if errors >= images:
        return 1.0
    low, high = errors / images, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if compute_binomial_tail(errors, images, middle) > 1 - CONFIDENCE else (low, middle)
    return high
