"""Requests that are repeated while a server is busy or the connection breaks: with growing pauses, for minutes."""

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from must.base.errors import TransientError
from must.base.text import without_secrets

Result = TypeVar("Result")
FIRST_PAUSE = 0.2  # seconds before a request is repeated; then twice as long each time, at random below that
LONGEST_PAUSE = 20.0
RETRY_TIMEOUT = 300.0  # seconds of repeated failure after which a request is given up
HTTP_TIMEOUTS = (10, 60)  # seconds to connect, seconds without a byte
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses


class UnreachableError(TransientError):
    """A server did not answer for minutes."""


PROVEN = "MUST_PROVEN_PLACES"  # in the environment: URIs where this run has read and written, one a line


def wait_for_credentials(*places: str) -> None:
    """Refused credentials and rights are waited for at these places and below, here and in processes started from here.

    They have worked there in this run; keys and tokens are renewed, and a refusal in between may pass.
    """
    os.environ[PROVEN] = "\n".join(dict.fromkeys([*proven(), *filter(None, places)]))


def proven() -> list[str]:
    return os.environ.get(PROVEN, "").splitlines()


def is_proven(uri: str) -> bool:
    return any(uri == place or uri.startswith(place.rstrip("/") + "/") for place in proven())


def is_transient(status: int | None) -> bool:
    """Whether the same request may succeed a moment later, by the HTTP status of its answer."""
    return status in TRANSIENT


def repeat(
    where: str,
    call: Callable[[], Result],
    may_pass: Callable[[BaseException], bool] = lambda error: isinstance(error, TransientError),
    tries: int = 0,
    timeout: float | None = None,
    on_first: Callable[[Exception], None] = lambda error: None,
) -> Result:
    """What `call` returns, called again after errors that are transient.

    Args:
        where: a URI or address, for the message.
        tries: calls after which it is given up, if not 0.
        timeout: seconds of failure after which it is given up in any case; RETRY_TIMEOUT if not given.
        on_first: called with the first error that is transient, for a line on the terminal.

    Raises:
        TransientError: it was given up: the one that `call` raised last, or an UnreachableError.
    """
    timeout = RETRY_TIMEOUT if timeout is None else timeout
    end, pause, tried = time.monotonic() + timeout, FIRST_PAUSE, 0
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            if not tried:
                on_first(error)
            wait, tried = random.uniform(0, pause), tried + 1
            if tried == tries or time.monotonic() + wait > end:
                if isinstance(error, TransientError):
                    raise
                raise given_up(where, error, timeout) from error
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


def given_up(where: str, error: Exception, timeout: float) -> UnreachableError:
    why = without_secrets(next(iter(str(error).splitlines()), "")) or type(error).__name__
    return UnreachableError(f"{where}: the server could not be reached for {timeout:g} s: {why}")
