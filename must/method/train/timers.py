"""Clocks of a run: what its steps took and how long it waited, over all of its lives, and when a checkpoint is due."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from must.method.train.train_state import TrainProgress

Item = TypeVar("Item")
SHARE = 20  # an interval is at least so many times as long as training stood still for the last checkpoint


class RunTimer:
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
        """Calls the function, with `progress` up to date; returns the seconds that training stood still for it, which
        it adds to `progress.saving`."""
        self.read()
        function(*arguments)
        seconds = time.monotonic() - self.since
        self.progress.saving += seconds
        return seconds


class CheckpointTimer:
    """When a checkpoint is due by the clock: often enough that a kill costs a minute, rare enough to cost little.

    It is the main process's; the others learn from the step's all-reduce that a checkpoint is due.

    Args:
        seconds: between two checkpoints; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cost = seconds, 0.0
        self.since, self.asked = time.monotonic(), False

    def due(self, busy: bool) -> bool:
        """Whether to save now; true once a checkpoint. `busy`: saving would wait for the last one's writing."""
        if not self.seconds or busy or self.asked:
            return False
        self.asked = time.monotonic() - self.since >= max(self.seconds, SHARE * self.cost)
        return self.asked

    def saved(self, cost: float) -> None:
        """`cost`: seconds that training stood still for it."""
        self.since, self.cost, self.asked = time.monotonic(), cost, False
