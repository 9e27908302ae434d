"""What a picture from outside may take of a worker process, whatever its header says: held by the system, by signals.

The cost in its header comes first. These bounds are for what that does not foresee.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from must.data.image.cost import MAX_PIXELS, MEMORY, SECONDS

TIMES = 3
"""How much more than the largest cost that a header may promise."""

held = False
"""Whether this process is one of those workers: it begins with `limit_memory`."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def most_seconds(max_pixels: int) -> float:
    return TIMES * SECONDS * max(1.0, max_pixels / MAX_PIXELS)


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
        most = used + others + int(TIMES * MEMORY * max(1.0, max_pixels / MAX_PIXELS))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def fault_of(exit_code: int | None, max_pixels: int) -> str:
    """Why the picture at which a worker ended with this code is rejected; "" if that was not the picture's doing."""
    if exit_code == -signal.SIGPROF:
        return f"takes more than {most_seconds(max_pixels):g} s of one core"
    if exit_code is not None and -exit_code in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exit_code).name})"
    return ""
