"""Forward passes over whatever images have come together: those that arrive during one pass make the next one."""

import asyncio
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

Row = tuple[np.ndarray, "asyncio.Future[Any]"]


class Batcher:
    """A thread that takes single images from a queue and runs them through a model, at most `most` at a time.

    Nobody waits for company unless `delay` (seconds) says so: an image that comes while nothing runs is run at once.

    Args:
        run: images as the model takes them, [N, ...], to a sequence of N results.
        loop: of the futures that get the results.
        ran: told of every pass: images, seconds.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Any],
        loop: asyncio.AbstractEventLoop,
        most: int,
        delay: float = 0,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.run, self.loop, self.most, self.delay, self.ran = run, loop, most, delay, ran
        self.queue: SimpleQueue[Row | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="forward", daemon=True)
        self.thread.start()

    def put(self, row: np.ndarray, future: asyncio.Future[Any]) -> None:
        """From any thread: `future` will get the result for `row`, or the error of its pass."""
        self.queue.put((row, future))

    def close(self) -> None:
        """Ends the thread after what is in the queue."""
        self.queue.put(None)

    def work(self) -> None:
        while (first := self.queue.get()) is not None:
            rows, last = self.gather(first)
            rows = [row for row in rows if not row[1].cancelled()]  # nobody waits for those any more
            if rows:
                self.forward(rows)
            if last:
                return

    def gather(self, first: Row) -> tuple[list[Row], bool]:
        """(what goes into one pass, whether the queue ended)."""
        rows = [first]
        until = time.monotonic() + self.delay if self.delay else 0.0
        while len(rows) < self.most:
            left = until - time.monotonic() if self.delay else 0.0
            try:
                row = self.queue.get(timeout=left) if left > 0 else self.queue.get_nowait()
            except Empty:
                break
            if row is None:
                return rows, True
            rows.append(row)
        return rows, False

    def forward(self, rows: list[Row]) -> None:
        begun = time.perf_counter()
        results: Any
        try:
            results = self.run(np.stack([row for row, _ in rows]))
        except Exception as error:  # the pass's images fail, the thread does not
            results = error
        self.ran(len(rows), time.perf_counter() - begun)
        self.loop.call_soon_threadsafe(deliver, [future for _, future in rows], results)


def deliver(futures: list[asyncio.Future[Any]], results: Any) -> None:
    """In the event loop: each future gets its result, or all of them the error."""
    for number, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(results, Exception):
            future.set_exception(results)
        else:
            future.set_result(results[number])
