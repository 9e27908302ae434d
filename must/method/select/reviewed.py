"""A choice that a person's answers have made, in place of the look-alikes' own."""

from dataclasses import replace

from must.method.select.abstain import by_look_alikes
from must.method.select.alpha import Choice
from must.method.select.ladder import RUNGS
from must.method.select.neighbours import look_alikes
from must.method.select.rung_predictions import RungPredictions


def reviewed(choice: Choice, looks: RungPredictions, alpha: float, why: str) -> Choice:
    """The same look at the images, with another share of the way kept and the threshold for naming no class of that."""
    neighbours, originals = look_alikes(looks.tokens)
    kept = looks.only(originals)
    rung = (0.0, *RUNGS).index(alpha)
    unsure = by_look_alikes(kept.probabilities[rung], kept.labels[rung], neighbours, alpha)
    return replace(choice, climb=replace(choice.climb, alpha=alpha, reason=why, undecided=None), abstention=unsure)
