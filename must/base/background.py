"""Calls a function periodically in a thread while other code runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(
    seconds: float,
    work: Callable[[], object],
    last: Callable[[], object] | None = None,
    at_once: threading.Event | None = None,
) -> Iterator[None]:
    """Calls `work` every `seconds` while the block runs, then `last`, and waits for the thread for at most `seconds`.

    Both must handle their errors: an exception would end the thread without a message.
    Setting the event `at_once` makes the thread call `work` immediately.
    """
    stopped, wake = threading.Event(), at_once or threading.Event()

    def run() -> None:
        while True:
            wake.wait(seconds)
            wake.clear()
            if stopped.is_set():
                break
            work()
        if last:
            last()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        wake.set()
        thread.join(timeout=seconds)
