"""A heartbeat of the program that waits for others, so that these stop when nothing waits for them any more.

It is a file that the one renews and the others read, so it tells of every way in which the one can end: killed, its
machine lost, its run stopped or deleted.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from must.base import storage
from must.base.background import every
from must.base.exits import line_of

logger = logging.getLogger(__name__)

SIGN_S = 30.0  # seconds between signs
SILENCE = 900.0  # seconds without one: a lost machine is noticed, and its pod started again elsewhere, in less


@contextmanager
def keep_alive(uri: str) -> Iterator[None]:
    """Renews the sign at `uri` while the block runs."""
    give_sign(uri)
    with every(SIGN_S, partial(give_sign, uri)):
        yield


def give_sign(uri: str) -> None:
    try:
        storage.write_bytes(uri, json.dumps({"time": time.time(), "host": socket.gethostname()}).encode())
    except (ValueError, OSError) as error:
        logger.warning(f"must: the heartbeat could not be written: {line_of(error)}")


@contextmanager
def stop_when_orphaned(uri: str, silence: float) -> Iterator[None]:
    """Runs the block; sends SIGTERM to this process when the sign at `uri` has not changed for `silence` seconds.

    The seconds are those of this machine's clock, whatever the other one's says. A place that does not answer says
    nothing about who gives signs: the seconds start again.
    """
    over = threading.Event()
    threading.Thread(target=watch, args=(uri, silence, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def watch(uri: str, silence: float, over: threading.Event) -> None:
    last, since = b"", time.monotonic()
    while not over.wait(min(SIGN_S, silence / 4)):
        try:
            seen = storage.read_bytes(uri)
        except FileNotFoundError:
            seen = b""
        except (ValueError, OSError):
            since = time.monotonic()
            continue
        if seen != last:
            last, since = seen, time.monotonic()
        elif time.monotonic() - since > silence:
            logger.warning(
                f"no heartbeat of the launcher for {silence:g} s: saving a checkpoint and stopping; a new "
                "launcher resumes from it"
            )
            os.kill(os.getpid(), signal.SIGTERM)
            return
