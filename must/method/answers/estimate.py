"""Accuracies from a person's answers, with 95% intervals."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from must.base.text import counted

Z_95 = 1.96  # standard errors of a 95% interval


class Share(NamedTuple):
    """From 0 to 1; a difference from -1 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracies on the answered images. `model`: before any answer; `refined`: of its refined labels; `with_answers`:
    with the answers in it, by cross-validation. `gain`: over the zero-shot model, paired, of the model with answers if
    there is one, else of the model."""

    answers: int
    zero_shot: Share
    model: Share
    gain: Share
    refined: Share | None = None
    with_answers: Share | None = None

    @classmethod
    def from_correct(
        cls,
        zero_shot: np.ndarray,
        model: np.ndarray,
        refined: np.ndarray | None = None,
        with_answers: np.ndarray | None = None,
    ) -> Self:
        """From bool [A]: whether each model is right about each answered image."""
        others = (None if right is None else share(right) for right in (refined, with_answers))
        gain = difference(zero_shot, model if with_answers is None else with_answers)
        return cls(len(model), share(zero_shot), share(model), gain, *others)

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
        return f"{counted(self.answers, 'answer')}: {', '.join(shares)}; {gain} {between}"


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
