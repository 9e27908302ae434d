"""Work that is done again and again in a thread while something else runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, work: Callable[[], object], last: Callable[[], object] | None = None) -> Iterator[None]:
    """Calls `work` every so many seconds while the block lasts, then `last`, which is waited for no longer than that.

    What they raise would end the thread unseen: they deal with their errors.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()
        if last:
            last()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=seconds)
