"""A heartbeat of the launcher, so that the training processes stop when the launcher has ended.

It is a file that the launcher renews and the processes read. So it covers every way in which the launcher can end:
killed, its machine lost, its run stopped or deleted.
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

LAUNCHER_HEARTBEAT_S = 30.0  # seconds between heartbeats
SILENCE = 900.0  # seconds without a heartbeat: longer than the restart of a pod whose machine was lost


@contextmanager
def keep_alive(uri: str) -> Iterator[None]:
    """Renews the heartbeat at `uri` while the block runs."""
    write_heartbeat(uri)
    with every(LAUNCHER_HEARTBEAT_S, partial(write_heartbeat, uri)):
        yield


def write_heartbeat(uri: str) -> None:
    try:
        storage.write_bytes(uri, json.dumps({"time": time.time(), "host": socket.gethostname()}).encode())
    except (ValueError, OSError) as error:
        logger.warning(f"must: the heartbeat could not be written: {line_of(error)}")


@contextmanager
def stop_when_orphaned(uri: str, silence: float) -> Iterator[None]:
    """Runs the block; sends SIGTERM to this process if the heartbeat at `uri` does not change for `silence` seconds.

    The seconds are measured with this machine's clock. If the heartbeat cannot be read, the launcher's state is unknown
    and the seconds start again.
    """
    done = threading.Event()
    threading.Thread(target=watch, args=(uri, silence, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def watch(uri: str, silence: float, done: threading.Event) -> None:
    last, since = b"", time.monotonic()
    while not done.wait(min(LAUNCHER_HEARTBEAT_S, silence / 4)):
        try:
            current = storage.read_bytes(uri)
        except FileNotFoundError:
            current = b""
        except (ValueError, OSError):
            since = time.monotonic()
            continue
        if current != last:
            last, since = current, time.monotonic()
        elif time.monotonic() - since > silence:
            logger.warning(
                f"no heartbeat of the launcher for {silence:g} s: saving a checkpoint and stopping; a new "
                "launcher resumes from it"
            )
            os.kill(os.getpid(), signal.SIGTERM)
            return
