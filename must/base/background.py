"""Work that is done again and again in a thread while something else runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(
    seconds: float,
    work: Callable[[], object],
    last: Callable[[], object] | None = None,
    first: float = 0.0,
    at_once: threading.Event | None = None,
) -> Iterator[None]:
    """Calls `work` every so many seconds while the block lasts, then `last`, which is waited for no longer than that.

    What they raise would end the thread unseen: they deal with their errors.

    Args:
        first: seconds to the first call, if others; each pause is twice as long then, up to `seconds`.
        at_once: set it, and `work` is called without waiting.
    """
    over, wake = threading.Event(), at_once or threading.Event()

    def run() -> None:
        pause = first or seconds
        while True:
            wake.wait(pause)
            wake.clear()
            if over.is_set():
                break
            pause = min(seconds, 2 * pause)
            work()
        if last:
            last()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        wake.set()
        thread.join(timeout=seconds)
