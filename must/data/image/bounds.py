"""What a picture from outside may take of a worker process, whatever its header says: held by the system, by signals.

The cost in its header comes first. These bounds are for what that does not foresee.
"""

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from must.base.errors import UserError
from must.base.processes import per_process
from must.base.workers import KilledWorkerError
from must.data.image.cost import MAX_MEMORY, MAX_PIXELS, MAX_SECONDS

TIMES = 3
"""How much more than the largest cost that a header may promise."""

held = False
"""Whether this process is one of those workers: it begins with `limit_memory`."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def most_seconds(max_pixels: int) -> float:
    return TIMES * MAX_SECONDS * max(1.0, max_pixels / MAX_PIXELS)


@contextmanager
def deadline(max_pixels: int) -> Iterator[None]:
    """The block ends this process if it takes more processor time. In a worker, whose parent calls `fault_of`."""
    signal.setitimer(signal.ITIMER_PROF, most_seconds(max_pixels))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(max_pixels: int, others: int) -> None:
    """From here on this process gets no more memory than a picture may take, and `others` bytes. Linux only."""
    global held
    held = True
    if sys.platform == "linux":
        import resource

        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        most = used + others + int(TIMES * MAX_MEMORY * max(1.0, max_pixels / MAX_PIXELS))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def fault_of(exit_code: int | None, max_pixels: int) -> str:
    """Why the picture at which a worker ended with this code is rejected; "" if that was not the picture's doing."""
    if exit_code == -signal.SIGPROF:
        return f"takes more than {most_seconds(max_pixels):g} s of one core"
    if exit_code is not None and -exit_code in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exit_code).name})"
    return ""


ASKED = struct.Struct("<QQQ")  # bytes of the file, max_pixels, shorter_side
ANSWERED = struct.Struct("<?QQQ")  # whether it is a picture, width, height; bytes of its RGB, or of the reason
PIPE = 1 << 20  # bytes, where the system allows it
PROGRAM = "from must.data.image.decode import decode; from must.data.image.bounds import work; work(decode)"


class Helper:
    """A program beside this one that decodes pictures whose header is not trusted with their cost.

    No forked process: it may be started by any thread, and by a loader's process, which may have no children otherwise.
    """

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


def exactly(file: IO[bytes], size: int) -> bytes:
    """Raises EOFError: there are less."""
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
