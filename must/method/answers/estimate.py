"""What people's answers say, with 95% confidence: accuracies, which labels can be accepted without review, and when no
class is named.

`accept` finds the largest set of the surest labels of which at most a share `risk` is wrong; `abstention`, in the same
way, the probability below which no class should be named.

The images without an answer are ordered by the confidence of their labels. Their surest 5%, 10%, ... 100% are tested in
this order, by the answers about pictures drawn at random whose labels are as sure, until a test fails (fixed sequence
testing: Angelopoulos et al. 2021, "Learn then test", arXiv 2110.01052). Each test is exact, also where the answered
images are a large part of all (hypergeometric). An image of none of the classes has a wrong label.

At most `risk` of the accepted labels is wrong with a probability of 95%, provided that

- answered images differ from the others only by chance: they were drawn from them at random (population.py), and few
  others have an answer;
- labels with all answers are right at least as often, at the same rank, as those that are tested: an
  answered image's label and rank are those without its own answer, by cross-validation;
- the number of answers does not depend on this result: who stops as soon as labels are accepted is wrong more often.

Wrong answers count as wrong labels, so that they mostly make the set smaller. A answers, N images without an answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from must.base.text import NONE_OF_THESE, counted

Z_95 = 1.96  # standard errors of a 95% interval
CONFIDENCE = 0.95  # that the promise holds
STEPS, THRESHOLDS_TRIED = 20, 100  # sets, and thresholds, that are tested
ROOM = 1e-4  # a threshold is at most so much below the lowest probability that is to reach it
GOOD_SHARE, POOR_SHARE = 0.8, 0.2  # shares of a class's labels that are accepted
LIGHTS = (
    f"Good: at least {100 * GOOD_SHARE:g} in 100 labels of the class can be accepted without review. "
    f"Poor: fewer than {100 * POOR_SHARE:g} in 100. Unsure: between."
)


class Share(NamedTuple):
    """From 0 to 1; a difference from -1 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracies on the answered images. `model`: before any answer; `refined`: of its refined labels; `with_answers`:
    with the answers in it, by cross-validation. `gain`: over the zero-shot model, paired, of the model with answers if
    there is one, else of the model. `unmeasured`: images that these answers
    were not drawn from, such as those that were added later."""

    answers: int
    zero_shot: Share
    model: Share
    gain: Share
    refined: Share | None = None
    with_answers: Share | None = None
    unmeasured: int = 0

    @classmethod
    def from_correct(
        cls,
        zero_shot: np.ndarray,
        model: np.ndarray,
        refined: np.ndarray | None = None,
        with_answers: np.ndarray | None = None,
        unmeasured: int = 0,
    ) -> Self:
        """From bool [A]: whether each model is right about each answered image."""
        first, second = (None if right is None else share(right) for right in (refined, with_answers))
        gain = difference(zero_shot, model if with_answers is None else with_answers)
        return cls(len(model), share(zero_shot), share(model), gain, first, second, unmeasured)

    @property
    def verdict(self) -> str:
        """A sentence: whether the gain shows that the model is better."""
        low, high = (f"{100 * end:+.0f}".replace("-", "\N{MINUS SIGN}") for end in self.gain[1:])
        between = f"its gain is between {low} and {high} points"
        if self.gain.low > 0:
            return f"Yes, the model is better than zero-shot: {between}."
        return f"No, zero-shot is better: {between}." if self.gain.high < 0 else f"Not decided yet: {between}."

    def text(self) -> str:
        """One line for the log."""
        parts = [
            ("zero-shot", self.zero_shot), ("the model", self.model), ("refined labels", self.refined),
            ("the model with answers", self.with_answers),
        ]  # fmt: skip
        shares = [f"{name} {part.value:.1%} ({part.low:.0%} to {part.high:.0%})" for name, part in parts if part]
        gain = f"gain of {parts[3][0] if self.with_answers else parts[1][0]} {100 * self.gain.value:+.1f} points"
        between = f"({100 * self.gain.low:+.1f} to {100 * self.gain.high:+.1f})"
        return f"{counted(self.answers, 'answer')}: {', '.join(shares)}; {gain} {between}{self.limit}"

    @property
    def limit(self) -> str:
        """Which images the numbers say nothing about; '' if they are about all."""
        others = counted(self.unmeasured, "image")
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


def difference(before: np.ndarray, after: np.ndarray, z: float = Z_95) -> Share:
    """Mean of `after` - `before`, bool [A] of the same images, with an interval of `z` standard errors (Bonett and
    Price 2012, valid for few images too)."""
    count = len(before)
    if not count:
        return Share(0.0, -1.0, 1.0)
    won, lost = (int((first & ~second).sum()) + 1 for first, second in ((after, before), (before, after)))
    middle = (won - lost) / (count + 2)
    half = z * math.sqrt(max((won + lost) / (count + 2) - middle**2, 0.0) / (count + 2))
    return Share((won - lost) / count, max(-1.0, middle - half), min(1.0, middle + half))


def binomial_tail(errors: int, images: int, rate: float) -> float:
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
    """The answers and labels at or above a threshold."""

    threshold: float
    answers: int
    errors: int
    labels: int = 0


@dataclass(frozen=True)
class Accepted:
    """`accepted` of the labels of the `images` without an answer can be accepted without review; None: nothing can be
    promised."""

    risk: float
    images: int
    answers: int
    accepted: int | None = None
    threshold: float | None = None  # smallest confidence of an accepted label
    unmeasured: int = 0  # images that the answers were not drawn from; none of their labels is accepted

    def text(self) -> str:
        """One line."""
        later = f" Of {counted(self.unmeasured, 'image')} that were added later: none." if self.unmeasured else ""
        wrong, what = f"at most {100 * self.risk:g} in 100 are wrong", "labels can be accepted without review"
        if self.accepted is not None:
            return f"{self.accepted:,} of {self.images:,} {what}: {wrong}, with 95% confidence.{later}"
        if self.answers < (fewest := fewest_answers(self.risk)):
            return f"No {what} yet: at least {fewest} random answers must show that {wrong}."
        return f"No {what}: {self.answers:,} random answers do not show that {wrong}."


def fewest_answers(risk: float) -> int:
    """The answers that show a share of at most `risk` if none is wrong: 59 for 5%."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-risk))


def first_count(answers: int, risk: float) -> int:
    """Answers of the first test: enough to pass with a few errors. Independent of the answers' content."""
    fewest = fewest_answers(risk)
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


def accept(
    risk: float, ranks: np.ndarray, correct: np.ndarray, confidence: np.ndarray, unmeasured: int = 0
) -> Accepted:
    """The largest set that passes.

    Args:
        ranks: float [A], as of `find_ranks`, by labels without the image's own answer.
        correct: bool [A], whether these labels are right.
        confidence: float [N], of the final labels.
        unmeasured: images that the answers were not drawn from, beside these.
    """
    answers, label_ranks = len(ranks), find_ranks(confidence, confidence)
    steps = []
    for number in range(1, STEPS + 1):
        threshold = 1 - number / STEPS
        right, labels = correct[ranks >= threshold], int((label_ranks >= threshold).sum())
        steps.append(Step(threshold, len(right), int((~right).sum()), labels))

    def keeps(step: Step) -> bool:
        return error_tail(step.errors, step.answers, step.labels, risk) <= 1 - CONFIDENCE

    last = find_last(steps, first_count(answers, risk), keeps)
    if not last or not len(confidence):
        return Accepted(risk, len(confidence), answers, unmeasured=unmeasured)
    threshold = float(confidence[label_ranks >= last.threshold].min())
    return Accepted(risk, len(confidence), answers, last.labels, threshold, unmeasured)


def error_tail(errors: int, answers: int, unseen: int, risk: float) -> float:
    """The largest P(at most `errors` wrong ones among `answers`) if more than `risk` of the `unseen` labels are wrong,
    and the answered images were drawn at random from both."""
    wrong, total = errors + math.floor(risk * unseen + 1e-9) + 1, answers + unseen
    if wrong - errors > unseen:
        return 0.0

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    counts = range(max(0, answers - total + wrong), errors + 1)
    every = log_choose(total, answers)
    return sum(math.exp(log_choose(wrong, k) + log_choose(total - wrong, answers - k) - every) for k in counts)


def describe_classes(
    classes: list[str],
    labels: np.ndarray,
    accepted: np.ndarray | None,
    judged: np.ndarray,
    truth: np.ndarray,
) -> list[dict[str, Any]]:
    """A row for each class that has images, the one with the smallest accepted share first.

    Args:
        labels: int64 [N], of the images without an answer; `accepted`: bool [N]; None where nothing can be promised.
        judged: int64 [A], labels without the image's own answer; `truth`: int64 [A], the answers, -1 for none of the
            classes.
    """
    names, rows = [*classes, NONE_OF_THESE], list[dict[str, Any]]()
    for number in np.unique(labels).tolist():
        mine, answered = labels == number, judged == number
        images, count = int(mine.sum()), None if accepted is None else int((mine & accepted).sum())
        wrong = np.bincount(truth[answered & (truth != number) & (truth >= -1)] % len(names), minlength=1)
        rows.append({
            "class": names[number], "light": name_light(count, images), "images": images, "accepted": count,
            "answers": int(answered.sum()),
            "right": [round(end, 4) for end in share(truth[answered] == number)] if answered.any() else None,
            "confused_with": names[int(wrong.argmax())] if wrong.any() else "",
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["accepted"] or 0) / row["images"])


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


def abstention(
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
    last = find_last(steps, first_count(images, target), lambda step: upper_bound(step.errors, step.answers) <= target)
    if not last:
        reason = "too few labels, or too many wrong classes among the surest images"
        return Abstention(target, reason=reason, images=images)
    risk, bound = last.errors / last.answers, upper_bound(last.errors, last.answers)
    threshold = place_threshold(*np.split(confidence[order], [last.answers]))
    return Abstention(target, by, threshold, last.answers / every, risk, bound, "", images)


def place_threshold(named: np.ndarray, others: np.ndarray) -> float:
    """Half-way between the probabilities of the images that get a class and the next lower one, at most ROOM below the
    first: other hardware and batch sizes change probabilities by millionths, and must not change who gets a class."""
    lowest = float(named.min())
    return max(0.0, (lowest + float(others.max(initial=lowest - 2 * ROOM))) / 2)


def upper_bound(errors: int, images: int) -> float:
    """Upper confidence bound of the error rate: the rate with P(at most `errors` of `images`) = 1 - CONFIDENCE."""
    if errors >= images:
        return 1.0
    low, high = errors / images, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, images, middle) > 1 - CONFIDENCE else (low, middle)
    return high
