"""The decision from what was measured: how much of an adaptation is kept, and what to tell about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from must.method.model.bundle import Description
from must.method.model.classifier import are_shares
from must.method.select.abstain import TARGET, by_look_alikes
from must.method.select.ladder import RUNGS, Climb, climb
from must.method.select.mutual_information import neighbour_information, renamed
from must.method.select.neighbours import judges, look_alikes
from must.method.select.rung_predictions import RungPredictions
from must.method.select.tokens import TOWER


@dataclass(frozen=True)
class Choice:
    """`signal`: what the look-alikes say of the full adaptation; `copies`: images left out; `same`: no image changes
    its class on any rung; `abstention`: below which probability the model that is kept should name no class; `judge`:
    what said which images look alike."""

    climb: Climb
    signal: dict[str, Any]
    copies: int
    same: bool = False
    abstention: dict[str, Any] | None = None
    judge: str = TOWER

    @property
    def outcome(self) -> str:
        """What became of the full adaptation: `gain`, look-alikes speak for it; `refused`, they speak against a part;
        `undecided`; or `same`, no image changes its class."""
        if self.same:
            return "same"
        if any(rung.outcome == "refused" for rung in self.climb.rungs):
            return "refused"
        return "gain" if self.climb.alpha > 0 else "undecided"

    def to_dict(self) -> dict[str, Any]:
        found = {"outcome": self.outcome, **self.climb.to_dict(), "copies": self.copies, "signal": self.signal}
        found["judge"] = self.judge
        return found | ({"abstention": self.abstention} if self.abstention else {})


def choose_alpha(
    looks: RungPredictions, alphas: Sequence[float] = RUNGS, shares: np.ndarray | None = None, length: float = 1.0
) -> Choice:
    """Pure arithmetic; the same looks give the same choice.

    Args:
        shares: [K] of the images' classes, if they are known.
        length: of the way, as a share of that from zero-shot to where training ended.
    """
    neighbours, originals = look_alikes(looks.tokens)
    kept = looks if len(originals) == len(looks.numbers) else looks.only(originals)
    signal = signals(kept.labels[0], kept.labels[-1], neighbours, kept.probabilities.shape[-1])
    found = climb(kept.probabilities, kept.labels, judges(kept.tokens), alphas, shares, length)
    same = bool((looks.labels == looks.labels[0]).all())
    rung = [0.0, *alphas].index(found.alpha)
    unsure = by_look_alikes(kept.probabilities[rung], kept.labels[rung], neighbours, found.alpha)
    return Choice(found, signal, len(looks.numbers) - len(originals), same, unsure, looks.judge)


def unsure_at(looks: RungPredictions, rung: int, kept: float, target: float = TARGET) -> dict[str, Any]:
    """Below which probability the model of a rung should name no class; `kept`: how much of an adaptation is in it."""
    neighbours, originals = look_alikes(looks.tokens)
    single = looks.only(originals)
    return by_look_alikes(single.probabilities[rung], single.labels[rung], neighbours, kept, target)


def shares_of(description: Description) -> np.ndarray | None:
    """[K] of the images' classes that a bundle was trained with, if the user gave any: its judge must know them too."""
    told = description.provenance.get("class_shares")
    return np.array(told, np.float64) if are_shares(told, len(description.classes)) else None


def signals(before: np.ndarray, after: np.ndarray, neighbours: np.ndarray, classes: int) -> dict[str, Any]:
    """Signals of the adaptation: its neighbour information and zero-shot's, in nats, the share of renamed images, and
    `value`, the gain of the first less twice the second. None where there are too few images."""
    if neighbours.size == 0:
        return {"zero_shot": None, "adapted": None, "renamed": None, "value": None}
    old, new = (neighbour_information(labels, neighbours, classes) for labels in (before, after))
    match = renamed(before, after, classes)
    return {"zero_shot": old, "adapted": new, "renamed": match, "value": new - old - 2 * match}
