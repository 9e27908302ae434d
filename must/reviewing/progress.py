"""What answers have done, as the page shows it."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from must.answers.accuracy import AccuracyEstimate
from must.answers.answers_file import Answer
from must.answers.estimate import Accepted
from must.base.errors import UserError
from must.base.text import pluralize
from must.data.format import load_index
from must.model.description import load_description

CHANGED = "The images or the model are others now: end this program and start it again; your answers are kept."


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
    labels: dict[int, tuple[int, int]]  # number -> label of each picture, and the most probable other class
    true: tuple[float, float] | None  # shares of zero-shot's classes and of the labels that are right, where known
    checks: int = 0  # wrong labels that were shown as a test, so many of which were
    missed: int = 0
    accuracy: AccuracyEstimate | None = None  # None: no answer measures yet
    accepted: Accepted | None = None
    left: Sequence[int] = ()  # numbers of the pictures that a person still has to name, the least sure label first
    classes: Sequence[dict[str, Any]] = ()  # rows of `describe_classes`


def describe_answers(answers: Collection[Answer], progress: Progress | None) -> str:
    """What the answers measure, and what they have done; `progress` may be that of those before the last ones."""
    if not answers:
        return "No answers yet."
    unsure = sum(answer.unsure for answer in answers)
    others, parts = sum(not answer.measures and not answer.unsure for answer in answers), list[str]()
    if progress:
        parts += [f"{progress.accuracy.text()}."] if progress.accuracy else []
        parts += [progress.accepted.text()] if progress.accepted else []
        if progress.changed:
            parts.append(f"So far {pluralize(progress.changed, 'label')} of other pictures changed.")
    if others:
        parts.append(f"{pluralize(others, 'answer')} for teaching only: not drawn at random.")
    if unsure:
        parts.append(f"{pluralize(unsure, 'answer')} “cannot tell”.")
    if progress and progress.checks:
        parts.append(f"Of {pluralize(progress.checks, 'wrong label')} shown as a test {progress.missed} were left.")
    if progress and progress.unread:
        pictures = pluralize(progress.unread, "other picture")
        parts.append(f"{pictures} are left that were not read here (--limit); `must refine` counts these, too.")
    return " ".join(parts)
