"""Threads that decode the images of requests, within a bound on their memory."""

import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from queue import PriorityQueue

logger = logging.getLogger(__name__)


class Decoders:
    """Threads that decode. `memory`: bytes for all pictures that are decoded at a time; a single one may take more."""

    def __init__(self, threads: int, memory: int) -> None:
        self.memory, self.used = memory, 0
        self.queue: PriorityQueue[tuple[float, int, int, Callable[[], None]]] = PriorityQueue()
        self.numbers, self.used_changed = count(), threading.Condition()
        for number in range(threads):
            threading.Thread(target=self.work, name=f"decode-{number}", daemon=True).start()

    def put(self, memory: int, job: Callable[[], None], delay: float = 0) -> None:
        """Thread-safe. `job` is called once, in one of the threads; its place in the queue is as if it had arrived
        `delay` seconds later."""
        self.queue.put((time.monotonic() + delay, next(self.numbers), memory, job))

    def work(self) -> None:
        while True:
            *_, memory, job = self.queue.get()
            with self.used_changed:
                while self.used and self.used + memory > self.memory:
                    self.used_changed.wait()
                self.used += memory
            try:
                job()
            except Exception:  # a bug; it is logged, and the other pictures continue
                logger.exception("must serve: a picture failed")
            finally:
                with self.used_changed:
                    self.used -= memory
                    self.used_changed.notify_all()
