"""Timers of a run: the time of steps and of waiting, over all attempts, and when a checkpoint is due."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from must.method.train.train_state import TrainProgress

Item = TypeVar("Item")
SHARE = 20  # an interval is at least so many times the seconds that the last checkpoint stopped training


class RunTimer:
    """Adds to `progress.seconds` and `progress.waited`, which checkpoints contain. It starts when it is created."""

    def __init__(self, progress: TrainProgress) -> None:
        self.progress, self.since = progress, time.monotonic()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each arrives counts as waiting for data."""
        began = time.monotonic()
        for item in items:
            self.progress.waited += time.monotonic() - began
            yield item
            began = time.monotonic()

    def read(self) -> None:
        """Updates `progress.seconds`."""
        now = time.monotonic()
        self.progress.seconds += now - self.since
        self.since = now

    def timed(self, function: Callable[..., Any], *arguments: Any) -> float:
        """Calls the function, with `progress` up to date; returns its seconds, and adds them to `progress.saving`."""
        self.read()
        function(*arguments)
        seconds = time.monotonic() - self.since
        self.progress.saving += seconds
        return seconds


class CheckpointTimer:
    """When a checkpoint is due by time: often enough that a kill costs a minute, and rarely enough to cost little.

    Only the main process has one; the others get its decision by the step's all-reduce.

    Args:
        seconds: between two checkpoints; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cost = seconds, 0.0
        self.since, self.requested = time.monotonic(), False

    def due(self, busy: bool) -> bool:
        """Whether to save now; true once per checkpoint. `busy`: the last checkpoint is still being written."""
        if not self.seconds or busy or self.requested:
            return False
        self.requested = time.monotonic() - self.since >= max(self.seconds, SHARE * self.cost)
        return self.requested

    def saved(self, cost: float) -> None:
        """`cost`: seconds that it stopped training."""
        self.since, self.cost, self.requested = time.monotonic(), cost, False
