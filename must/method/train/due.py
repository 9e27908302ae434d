"""When a checkpoint is due by the clock: often enough that a kill costs a minute, rare enough to cost little itself."""

from __future__ import annotations

import time

SHARE = 20  # an interval is at least so many times as long as training stood still for the last checkpoint


class Due:
    """The main process's clock. The others learn from the step's all-reduce that a checkpoint is due.

    Args:
        seconds: between two checkpoints; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cost = seconds, 0.0
        self.since, self.asked = time.monotonic(), False

    def asks(self, busy: bool) -> bool:
        """Whether to save now, said once a checkpoint. `busy`: saving would wait for the last one's writing."""
        if not self.seconds or busy or self.asked:
            return False
        self.asked = time.monotonic() - self.since >= max(self.seconds, SHARE * self.cost)
        return self.asked

    def saved(self, cost: float) -> None:
        """`cost`: seconds that training stood still for it."""
        self.since, self.cost, self.asked = time.monotonic(), cost, False
