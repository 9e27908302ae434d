"""Accuracies by people's answers, with 95% intervals."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from must.base.text import pluralize

Z_95 = 1.96  # standard errors of a 95% interval
CONFIDENCE = 0.95  # that a bound, or a promise, holds


class Share(NamedTuple):
    """From 0 to 1; a difference from -1 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracies by answers about pictures drawn at random. `model`: before any answer; `with_answers`: of the model
    with the answers in it, by cross-validation. `gain`: over the zero-shot model, paired, of the model with answers if
    there is one, else of the model. `labels`: of all labels of the set, `own` of which are answers and count as right,
    the others as they are without their own answer. `unmeasured`: pictures that these answers were not drawn from, such
    as those that were added later."""

    answers: int
    zero_shot: Share
    model: Share
    gain: Share
    with_answers: Share | None = None
    unmeasured: int = 0
    labels: Share | None = None
    own: int = 0

    @classmethod
    def from_correct(
        cls, zero_shot: np.ndarray, model: np.ndarray, with_answers: np.ndarray | None = None, unmeasured: int = 0
    ) -> Self:
        """From bool [A]: whether each model is right about each answered picture."""
        gain = compare_paired_answers(zero_shot, model if with_answers is None else with_answers)
        later = None if with_answers is None else share(with_answers)
        return cls(len(model), share(zero_shot), share(model), gain, later, unmeasured)

    def with_labels(self, right: np.ndarray, own: int, others: int, overlooked: int = 0) -> Self:
        """With the accuracy of all labels of the set: of `own` answers, `overlooked` of which are wrong, and `others`.
        `right`: bool [A], whether the labels of the pictures drawn at random are right without their own answer."""
        found, pictures, known = share(right), max(1, own + others), max(0, own - overlooked)
        return replace(self, labels=Share(*((known + others * end) / pictures for end in found)), own=own)

    @property
    def better(self) -> bool | None:
        """Whether the gain shows that the model is better than zero-shot; None: not decided. Of people who look after
        every answer about a model that is not better, 2 in 100 see a gain within 34 answers, and 5 within 74."""
        return True if self.gain.low > 0 else False if self.gain.high < 0 else None

    def text(self) -> str:
        """One line for the log."""
        parts = [
            ("zero-shot", self.zero_shot), ("the model", self.model), ("the model with answers", self.with_answers),
            ("the labels", self.labels),
        ]  # fmt: skip
        shares = [f"{name} {part.value:.1%} ({part.low:.0%} to {part.high:.0%})" for name, part in parts if part]
        if self.labels:
            shares[-1] += f", {self.own:,} of them answers"
        gain = f"gain of {parts[2][0] if self.with_answers else parts[1][0]} {100 * self.gain.value:+.1f} points"
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


def compare_paired_answers(before: np.ndarray, after: np.ndarray) -> Share:
    """Mean of `after` - `before`, bool [A] of the same images, with a 95% interval (Bonett and Price
    2012, valid for few images too)."""
    count = len(before)
    if not count:
        return Share(0.0, -1.0, 1.0)
    won, lost = (int((first & ~second).sum()) + 1 for first, second in ((after, before), (before, after)))
    middle = (won - lost) / (count + 2)
    half = Z_95 * math.sqrt(max((won + lost) / (count + 2) - middle**2, 0.0) / (count + 2))
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


def compute_upper_bound(errors: int, images: int) -> float:
    """Upper confidence bound of the error rate: the rate with P(at most `errors` of `images`) = 1 - CONFIDENCE."""
    if errors >= images:
        return 1.0
    low, high = errors / images, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if compute_binomial_tail(errors, images, middle) > 1 - CONFIDENCE else (low, middle)
    return high
