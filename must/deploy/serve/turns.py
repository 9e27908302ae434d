"""Who decodes next: requests share the decoders by what their pictures cost, one picture at a time.

Self-clocked fair queueing: each picture has a number, what its request has had and what the picture costs, and the
smallest one goes next. So a request of one photo does not wait for another's sixty-four, and one of large pictures
still gets its share.
"""

import heapq
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

LARGE = 16.0  # megapixels of a picture for which one decoder is kept free: it cannot be interrupted


class Share:
    """What one request has had so far, in megapixels of all requests' even time."""

    def __init__(self) -> None:
        self.had = 0.0


class Turn(NamedTuple):
    when: float
    number: int
    megapixels: float
    memory: int
    job: Callable[[], None]


class Turns:
    """Threads that decode. `memory`: bytes that pictures may take at a time; one alone is decoded whatever it takes."""

    def __init__(self, threads: int, memory: int) -> None:
        self.threads, self.memory = threads, memory
        self.waiting: list[Turn] = []
        self.now = 0.0
        self.running = self.large = self.taken = 0
        self.numbers = count()
        self.changed = threading.Condition()
        self.closed = False
        for number in range(threads):
            threading.Thread(target=self.work, name=f"decode-{number}", daemon=True).start()

    def put(self, share: Share, megapixels: float, memory: int, job: Callable[[], None]) -> None:
        """From any thread. `job` is called once, in a thread of these; it raises nothing."""
        with self.changed:
            share.had = max(share.had, self.now) + megapixels
            heapq.heappush(self.waiting, Turn(share.had, next(self.numbers), megapixels, memory, job))
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify_all()

    def work(self) -> None:
        while True:
            with self.changed:
                while (turn := self.take()) is None:
                    if self.closed:
                        return
                    self.changed.wait()
            try:
                turn.job()
            except Exception:  # ours; the other requests go on, and the log has it
                traceback.print_exc(file=sys.stderr)
            with self.changed:
                self.running -= 1
                self.large -= turn.megapixels > LARGE
                self.taken -= turn.memory
                self.changed.notify_all()

    def take(self) -> Turn | None:
        """The next one that there is room for; the lock is held."""
        passed = []
        chosen = None
        while self.waiting and chosen is None:
            turn = heapq.heappop(self.waiting)
            if self.has_room(turn):
                chosen = turn
            else:
                passed.append(turn)
        for turn in passed:
            heapq.heappush(self.waiting, turn)
        if chosen is not None:
            self.now = max(self.now, chosen.when)
            self.running += 1
            self.large += chosen.megapixels > LARGE
            self.taken += chosen.memory
        return chosen

    def has_room(self, turn: Turn) -> bool:
        if turn.megapixels > LARGE and self.large >= max(1, self.threads - 1):
            return False
        return not self.running or self.taken + turn.memory <= self.memory
