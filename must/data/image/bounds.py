"""Limits on the memory and time that a process spends on an image, enforced by the operating system.

They are the only ones for images of other formats than JPEG, PNG and WebP, and for headers that understate the cost."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from must.base.console import silence_pillow
from must.base.errors import UserError
from must.base.processes import per_process
from must.base.workers import KilledWorkerError
from must.data.image.colors import strips
from must.data.image.cost import MAX_PIXELS

MAX_MEMORY, MAX_SECONDS = 2e9, 15.0
"""Bytes and processor time of one image. A limit on pixels above the default raises both in proportion."""
SMALL_MEMORY, EXPANSION = 8e8, 200
"""An image may take so many bytes, or this many times the size of its file if that is more, up to MAX_MEMORY."""

memory_limited = False
"""Whether this process is such a worker, which decodes images inside `limits`."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def max_seconds(max_pixels: int) -> float:
    return MAX_SECONDS * max(1.0, max_pixels / MAX_PIXELS)


def max_memory(max_pixels: int, size: int) -> int:
    """Bytes that an image in a file of `size` bytes may take."""
    return int(min(MAX_MEMORY, max(SMALL_MEMORY, EXPANSION * size)) * max(1.0, max_pixels / MAX_PIXELS))


@contextmanager
def limits(max_pixels: int, size: int, others: int = 0) -> Iterator[None]:
    """Ends this process if decoding an image of `size` bytes in the block takes too much processor time; too much
    memory, on Linux and with `others` bytes for other threads, is a MemoryError. For workers, whose parent calls
    `describe_exit`."""
    global memory_limited
    memory_limited = True
    set_memory(max_memory(max_pixels, size) + others)
    signal.setitimer(signal.ITIMER_PROF, max_seconds(max_pixels))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        set_memory(None)


def set_memory(more: int | None) -> None:
    """Limits the memory of this process to what it has and so many bytes; None lifts the limit. Linux only."""
    if sys.platform != "linux":
        return
    import resource

    hard = limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if more is not None:
        with open("/proc/self/statm", "rb") as file:  # a third of the time of the file status
            limit = more + int(file.read().split()[5]) * resource.getpagesize()
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


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
        width, height = SIZE_OF_IMAGE.unpack(self.connection.recv_bytes())
        if not width:
            raise UserError(self.connection.recv_bytes().decode("utf-8", "replace"))
        image, top = Image.new("RGB", (width, height)), 0
        while top < height:  # in strips, without copies of the whole
            strip = self.connection.recv_bytes()
            rows = len(strip) // (3 * width)
            image.paste(Image.frombytes("RGB", (width, rows), strip), (0, top))
            top += rows
        return image


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
    with suppress(EOFError, OSError):
        while True:
            answer(connection, decode, int(connection.recv_bytes()), connection.recv_bytes())


def answer(connection: Connection, decode: Callable[[bytes, int], Image.Image], max_pixels: int, data: bytes) -> None:
    """Sends the size of an image and its pixels in strips, or the reason why not. Raises OSError: nobody reads it."""
    size, parts = (0, 0), iter(list[bytes]())
    with limits(max_pixels, len(data)):
        try:
            picture = decode(data, max_pixels)
            size, parts = picture.size, map(Image.Image.tobytes, (strip for _, strip in strips(picture)))
        except MemoryError:
            parts = iter([b"too large for the memory"])
        except ValueError as error:
            parts = iter([str(error).encode("utf-8", "replace")])
    connection.send_bytes(SIZE_OF_IMAGE.pack(*size))
    for part in parts:
        connection.send_bytes(part)
