"""The last lines that this process and its children print, while they appear where they always do."""

import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Self

from must.base.text import without_secrets

MAX_LINES = 40  # lines
# Seconds to wait for the last lines: a child that outlives the stage holds its pipe open for longer.
DRAIN_TIMEOUT = 5.0


class Tail:
    """A context in which file descriptors 1 and 2 lead through pipes to where they led before.

    A Python-level stand-in for stdout would miss what torchrun's processes and C libraries print. All lines are there
    once it is closed; before that, some may still be on their way through a pipe.
    """

    def __init__(self) -> None:
        self.kept: deque[str] = deque(maxlen=MAX_LINES)
        self.lock = threading.Lock()
        self.before: dict[int, int] = {}
        self.readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for descriptor in (1, 2):
            read_end, write_end = os.pipe()
            self.before[descriptor] = os.dup(descriptor)
            flush()
            os.dup2(write_end, descriptor)
            os.close(write_end)
            reader = threading.Thread(target=self.pass_on, args=(read_end, self.before[descriptor]), daemon=True)
            reader.start()
            self.readers.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        flush()
        for descriptor, before in self.before.items():
            os.dup2(before, descriptor)  # closes the write end: what is in the pipe, and then its end, reach the reader
        deadline = time.monotonic() + DRAIN_TIMEOUT
        for reader in self.readers:
            reader.join(timeout=max(0.0, deadline - time.monotonic()))
        for reader, before in zip(self.readers, self.before.values(), strict=True):
            if not reader.is_alive():
                os.close(before)

    def lines(self) -> list[str]:
        flush()
        with self.lock:
            return list(self.kept)

    def add(self, text: str) -> None:
        with self.lock:
            self.kept.extend(without_secrets(text.rstrip()).splitlines())

    def pass_on(self, source: int, target: int) -> None:
        pending = b""
        while data := os.read(source, 65536):
            with suppress(OSError):
                os.write(target, data)
            *complete, pending = (pending + data).split(b"\n")
            for line in complete:  # of a progress bar: what stood there last
                self.add(line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace"))
        self.add(pending.decode(errors="replace"))
        os.close(source)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
