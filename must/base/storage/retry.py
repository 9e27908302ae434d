"""Repeats requests while a server is busy or the connection is lost, with growing pauses, for minutes."""

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from must.base.errors import TransientError
from must.base.text import printable, without_secrets

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
FIRST_PAUSE = 0.2  # seconds: upper limit of the first random pause; the limit doubles with each attempt
LONGEST_PAUSE = 20.0
RETRY_TIMEOUT = 300.0  # seconds of failures after which a request is not repeated any more
SILENT, LINE_PAUSE = 5.0, 60.0  # seconds of failures before a line about them, and between two lines
HTTP_TIMEOUTS = (10, 60)  # seconds to connect, seconds without a byte
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses


class UnreachableError(TransientError):
    """A server did not answer for minutes."""


# Environment variable: URIs where this run has read and written, one a line.
RETRY_AUTH_ERRORS_AT = "MUST_RETRY_AUTH_ERRORS_AT"


def wait_for_credentials(*uris: str) -> None:
    """From now on, refused credentials and permissions are transient errors at these URIs and below, in this process
    and its children. They have worked there in this run; while keys and tokens are renewed, a refusal can be temporary.
    """
    os.environ[RETRY_AUTH_ERRORS_AT] = "\n".join(dict.fromkeys([*proven_uris(), *filter(None, uris)]))


def proven_uris() -> list[str]:
    return os.environ.get(RETRY_AUTH_ERRORS_AT, "").splitlines()


def may_retry_auth_error(uri: str) -> bool:
    return any(uri == folder or uri.startswith(folder.rstrip("/") + "/") for folder in proven_uris())


def is_transient(status: int | None) -> bool:
    """Whether the same request may succeed a moment later, by the HTTP status of the response."""
    return status in TRANSIENT


def repeat(
    where: str,
    call: Callable[[], Result],
    may_pass: Callable[[BaseException], bool] = lambda error: isinstance(error, TransientError),
    timeout: float | None = None,
) -> Result:
    """Calls `call` until it succeeds or its error is not transient; returns its result. After SILENT seconds it logs
    that it waits. `where`: a URI or address, for the messages; `timeout`: seconds of failures after which it gives up;
    RETRY_TIMEOUT if not given.
    Raises TransientError: the limit was reached: the last error of `call`, or an UnreachableError."""
    timeout = RETRY_TIMEOUT if timeout is None else timeout
    pause, waiting = FIRST_PAUSE, Waiting(where, timeout)
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            wait = random.uniform(0, pause)
            waiting.log(error, wait)
            if time.monotonic() + wait > waiting.started + timeout:
                if isinstance(error, TransientError):
                    raise
                raise given_up(where, error, timeout) from error
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


class Waiting:
    """Logs that a request is repeated, once it fails for SILENT seconds; of all requests one in LINE_PAUSE seconds."""

    last = -LINE_PAUSE  # time of the last line

    def __init__(self, where: str, timeout: float) -> None:
        self.where, self.timeout, self.started = where, timeout, time.monotonic()

    def log(self, error: Exception, wait: float = 0.0) -> None:
        """`error`: of the request; `wait`: seconds until it is repeated."""
        now = time.monotonic()
        if now + wait > self.started + SILENT and now > Waiting.last + LINE_PAUSE:
            Waiting.last = now
            text = f"{self.where}: no answer yet ({describe(error)}); repeated for up to {self.timeout:g} s"
            logger.warning(printable(without_secrets(text)))


def describe(error: Exception) -> str:
    return without_secrets(next(iter(str(error).splitlines()), "")) or type(error).__name__


def given_up(where: str, error: Exception, timeout: float) -> UnreachableError:
    return UnreachableError(f"{where}: the server could not be reached for {timeout:g} s: {describe(error)}")
