"""How long a run took, and what of it was waiting: counted over all of its lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from must.method.train.train_state import TrainProgress

Item = TypeVar("Item")


class Stopwatch:
    """Adds to `progress.seconds` and `progress.waited`, which travel with the checkpoints. It runs once it is made."""

    def __init__(self, progress: TrainProgress) -> None:
        self.progress, self.since = progress, time.monotonic()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each of them is there is waiting for data."""
        began = time.monotonic()
        for item in items:
            self.progress.waited += time.monotonic() - began
            yield item
            began = time.monotonic()

    def read(self) -> None:
        """Brings `progress.seconds` up to now."""
        now = time.monotonic()
        self.progress.seconds += now - self.since
        self.since = now

    def timed(self, function: Callable[..., Any], *arguments: Any) -> float:
        """Calls the function, with `progress` up to date; returns the seconds that training stood still for it."""
        self.read()
        function(*arguments)
        return time.monotonic() - self.since
