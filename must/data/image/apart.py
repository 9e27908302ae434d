"""Decodes in a program beside this one, which ends at a deadline and has a limit on its memory.

For pictures whose header is not trusted with their cost. A program of its own and no forked process: it may be started
at any time, by any thread, and by a loader's process, which may have no children otherwise.
"""

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

from must.base.errors import UserError
from must.base.processes import per_process
from must.base.workers import KilledWorkerError
from must.data.image.bounds import deadline, fault_of, limit_memory

ASKED = struct.Struct("<QQQ")  # bytes of the file, max_pixels, shorter_side
ANSWERED = struct.Struct("<?QQQ")  # whether it is a picture, width, height; bytes of its RGB, or of the reason
PIPE = 1 << 20  # bytes, where the system allows it
PROGRAM = "from must.data.image.decode import decode; from must.data.image.apart import work; work(decode)"


class Helper:
    def __init__(self) -> None:
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            pipesize=PIPE,
            process_group=0,  # a signal to the whole group is for those who decide when they end
        )

    def decode(self, data: bytes, max_pixels: int, shorter_side: int) -> Image.Image:
        """Raises ValueError: the reason; EOFError, OSError: the program has ended."""
        asked, answers = self.process.stdin, self.process.stdout
        assert asked and answers
        asked.write(ASKED.pack(len(data), max_pixels, shorter_side))
        asked.write(data)
        asked.flush()
        whole, width, height, size = ANSWERED.unpack(exactly(answers, ANSWERED.size))
        content = exactly(answers, size)
        if not whole:
            raise UserError(content.decode("utf-8", "replace"))
        return Image.frombytes("RGB", (width, height), content)

    def exit_code(self) -> int:
        return self.process.wait()


class Helpers:
    """Those of this process that have nothing to do; as many are made as threads ask at a time."""

    def __init__(self) -> None:
        self.free: list[Helper] = []
        self.lock = threading.Lock()

    def decode(self, data: bytes, max_pixels: int, shorter_side: int) -> Image.Image:
        with self.lock:
            helper = self.free.pop() if self.free else None
        helper = helper or Helper()
        try:
            found = helper.decode(data, max_pixels, shorter_side)
        except (EOFError, OSError):
            why = fault_of(helper.exit_code(), max_pixels)
            raise (UserError(why) if why else KilledWorkerError()) from None
        except ValueError:
            self.free.append(helper)
            raise
        self.free.append(helper)
        return found


helpers = per_process(Helpers)


def decode_apart(data: bytes, max_pixels: int, shorter_side: int = 0) -> Image.Image:
    """As `decode`, of bytes whose header it has accepted.

    Raises:
        ValueError: as `decode`; the picture took too long, or its decoder crashed.
        KilledWorkerError: somebody else has ended the program.
    """
    return helpers().decode(data, max_pixels, shorter_side)


def work(decode: Callable[[bytes, int, int], Image.Image]) -> None:
    """What the program does until nobody asks any more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    while head := sys.stdin.buffer.read(ASKED.size):
        size, max_pixels, shorter_side = ASKED.unpack(head)
        data = exactly(sys.stdin.buffer, size)
        limit_memory(max_pixels, 0)
        whole, width, height = False, 0, 0
        with deadline(max_pixels):
            try:
                picture = decode(data, max_pixels, shorter_side)
                whole, (width, height), content = True, picture.size, picture.tobytes()
            except MemoryError:
                content = b"too large for the memory"
            except ValueError as error:
                content = str(error).encode("utf-8", "replace")
        answers.write(ANSWERED.pack(whole, width, height, len(content)))
        answers.write(content)
        answers.flush()


def exactly(file: IO, size: int) -> bytes:
    """Raises EOFError: there are less."""
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
