"""What answers have done, as the page shows it, and what computes it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from must.base.errors import UserError
from must.base.text import pluralize
from must.data.format import load_index
from must.method.answers.accuracy import AccuracyEstimate
from must.method.answers.estimate import Accepted
from must.method.model.description import load_description

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

    def text(self) -> str:
        parts = [f"{self.accuracy.text()}."] if self.accuracy else []
        parts += [self.accepted.text()] if self.accepted else []
        parts += [f"So far {pluralize(self.changed, 'label')} of other pictures changed."] if self.changed else []
        return " ".join(parts)


class Effect(Protocol):
    """What answers do, computed beside the page."""

    progress: Progress | None
    changed: bool  # whether the images or the model are others now

    @property
    def is_current(self) -> bool:
        """Whether `progress` is of the last answers."""

    @property
    def age(self) -> float:
        """Seconds since the first answer that is not counted yet."""

    def arrange(self, numbers: list[int]) -> list[int]:
        """The same numbers, those of pictures that look alike side by side."""

    def update(self) -> None:
        """Answers were written, or taken back."""

    def wait(self, seconds: float | None = None) -> None:
        """Until the last ones are counted."""
