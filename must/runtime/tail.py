"""Records the last lines that this process and its children print, and passes them on unchanged."""

import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Self

from must.base.text import without_secrets

MAX_LINES = 40  # lines
# Seconds to wait for the last lines: a child that outlives the stage keeps the pipe open for longer.
DRAIN_TIMEOUT = 5.0


class Tail:
    """A context in which file descriptors 1 and 2 are pipes, whose data is recorded and passed on.

    Replacing sys.stdout would miss the output of torchrun's processes and of C libraries. All lines are recorded when
    the context ends; before that, some may still be in a pipe.
    """

    def __init__(self) -> None:
        self.last_lines: deque[str] = deque(maxlen=MAX_LINES)
        self.lock = threading.Lock()
        self.originals: dict[int, int] = {}  # descriptor -> a duplicate of its original target
        self.readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for descriptor in (1, 2):
            read_end, write_end = os.pipe()
            self.originals[descriptor] = os.dup(descriptor)
            flush()
            os.dup2(write_end, descriptor)
            os.close(write_end)
            reader = threading.Thread(target=self.pass_on, args=(read_end, self.originals[descriptor]), daemon=True)
            reader.start()
            self.readers.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        flush()
        for descriptor, original in self.originals.items():
            os.dup2(original, descriptor)  # closes the write end: the reader gets the remaining data, then the end
        deadline = time.monotonic() + DRAIN_TIMEOUT
        for reader in self.readers:
            reader.join(timeout=max(0.0, deadline - time.monotonic()))
        for reader, original in zip(self.readers, self.originals.values(), strict=True):
            if not reader.is_alive():
                os.close(original)

    def lines(self) -> list[str]:
        flush()
        with self.lock:
            return list(self.last_lines)

    def add(self, text: str) -> None:
        with self.lock:
            self.last_lines.extend(without_secrets(text.rstrip()).splitlines())

    def pass_on(self, source: int, target: int) -> None:
        pending = b""
        while data := os.read(source, 65536):
            with suppress(OSError):
                os.write(target, data)
            *complete, pending = (pending + data).split(b"\n")
            for line in complete:  # of a progress bar only the last state
                self.add(line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace"))
        self.add(pending.decode(errors="replace"))
        os.close(source)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
