"""Requests that are repeated while a server is busy or the connection breaks: with growing pauses, for five minutes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from must.base.storage.base import UnreachableError

Result = TypeVar("Result")
FIRST_PAUSE = 0.2  # seconds before a request is repeated; then twice as long each time, at random below that
LONGEST_PAUSE = 20.0
RETRY_TIMEOUT = 300.0  # seconds of repeated failure after which a request is given up
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
TRANSIENT = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which the same request may succeed


def repeat(uri: str, call: Callable[[], Result], is_transient: Callable[[BaseException], bool]) -> Result:
    """What `call` returns, called again after errors that are transient.

    Raises:
        UnreachableError: it went on for longer than RETRY_TIMEOUT.
    """
    end, pause = time.monotonic() + RETRY_TIMEOUT, FIRST_PAUSE
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = random.uniform(0, pause)
            if time.monotonic() + wait > end:
                raise given_up(uri, error) from error
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


def given_up(uri: str, error: Exception) -> UnreachableError:
    why = next(iter(str(error).splitlines()), "") or type(error).__name__
    return UnreachableError(f"{uri}: the server could not be reached for {RETRY_TIMEOUT:g} s: {why}")
