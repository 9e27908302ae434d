"""Limits on the memory and time that a process spends on an image, enforced by the operating system.

They are the only ones for images of other formats than JPEG, PNG and WebP, and for headers that understate the cost."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from must.base.console import silence_pillow
from must.base.errors import UserError
from must.base.processes import per_process
from must.base.workers import KilledWorkerError
from must.data.image.cost import MAX_PIXELS

MAX_MEMORY, MAX_SECONDS = 2e9, 15.0
"""Bytes and processor time of one image. A limit on pixels above the default raises both in proportion."""

memory_limited = False
"""Whether this process is such a worker, which `limit_memory` was called in."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def max_seconds(max_pixels: int) -> float:
    return MAX_SECONDS * max(1.0, max_pixels / MAX_PIXELS)


@contextmanager
def deadline(max_pixels: int) -> Iterator[None]:
    """Ends this process if the block takes more processor time. For workers, whose parent calls `describe_exit`."""
    signal.setitimer(signal.ITIMER_PROF, max_seconds(max_pixels))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(max_pixels: int, others: int) -> None:
    """Limits the memory of this process to what an image may take, plus `others` bytes. Linux only."""
    global memory_limited
    memory_limited = True
    if sys.platform == "linux":
        import resource

        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        limit = used + others + int(MAX_MEMORY * max(1.0, max_pixels / MAX_PIXELS))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def describe_exit(exit_code: int | None, max_pixels: int) -> str:
    """Why the image at which a worker ended with this code is rejected; "" if the image was not the cause."""
    if exit_code == -signal.SIGPROF:
        return f"takes more than {max_seconds(max_pixels):g} s of one core"
    if exit_code is not None and -exit_code in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exit_code).name})"
    return ""


SIZE_OF_IMAGE = struct.Struct("<QQ")  # of the image in an answer, both 0 for an error
PROGRAM = "from must.data.image.decode import decode; from must.data.image.bounds import work; work(decode)"


class Helper:
    """A subprocess with limits, which decodes images.

    It is not forked: any thread may start it, and so may a loader process, which may have no other children."""

    def __init__(self) -> None:
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        self.connection, other_end = Pipe()
        with other_end:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(other_end.fileno())],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                pass_fds=[other_end.fileno()],
                process_group=0,  # a signal to the group of this process does not reach it
            )

    def decode(self, data: bytes, max_pixels: int) -> Image.Image:
        """Raises ValueError: the reason; EOFError, OSError: the subprocess has ended."""
        self.connection.send_bytes(b"%d" % max_pixels)
        self.connection.send_bytes(data)
        size, content = SIZE_OF_IMAGE.unpack(self.connection.recv_bytes()), self.connection.recv_bytes()
        if not any(size):
            raise UserError(content.decode("utf-8", "replace"))
        return Image.frombytes("RGB", size, content)


idle_helpers = per_process(list[Helper])  # there are as many in all as threads that decode at the same time


def decode_isolated(data: bytes, max_pixels: int) -> Image.Image:
    """As `decode`, in a subprocess, for any bytes.
    Raises ValueError: as `decode`; the image took too long, or its decoder crashed; KilledWorkerError: something else
    has ended the subprocess."""
    idle = idle_helpers()
    try:
        helper = idle.pop()  # not after a look at its length: other threads do the same
    except IndexError:
        helper = Helper()
    try:
        image = helper.decode(data, max_pixels)
    except (EOFError, OSError):
        why = describe_exit(helper.process.wait(), max_pixels)
        raise (UserError(why) if why else KilledWorkerError()) from None
    except ValueError:
        idle.append(helper)
        raise
    idle.append(helper)
    return image


def work(decode: Callable[[bytes, int], Image.Image]) -> None:
    """The subprocess's loop: answers requests until its parent closes the connection, or is killed."""
    connection = Connection(int(sys.argv[1]))
    silence_pillow()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library may print
    while True:
        try:
            max_pixels, data = int(connection.recv_bytes()), connection.recv_bytes()
        except (EOFError, OSError):
            return
        limit_memory(max_pixels, 0)
        size = 0, 0
        with deadline(max_pixels):
            try:
                picture = decode(data, max_pixels)
                size, content = picture.size, picture.tobytes()
            except MemoryError:
                content = b"too large for the memory"
            except ValueError as error:
                content = str(error).encode("utf-8", "replace")
        try:
            connection.send_bytes(SIZE_OF_IMAGE.pack(*size))
            connection.send_bytes(content)
        except OSError:
            return
