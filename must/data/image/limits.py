"""Limits on what an image may cost: on its pixels and metadata, read from its header, and, in the workers of
`must shard`, on memory and processor time, which the operating system enforces."""

import importlib.util
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from must.base.errors import UserError

MAX_PIXELS = 89_478_485
"""Default limit on width x height: Pillow's threshold for decompression bombs, 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view with a shorter side of S pixels has a longer one of up to S times this."""

MAX_SCANS = 100
"""Of a JPEG; decoding a scan may take as long as the whole image. Encoders write 3 to 20."""

MAX_SEGMENTS = 10_000
"""Of a JPEG before its pixels. Pillow reads each in Python."""

MAX_EXIF = 1 << 16
"""Bytes, as in a segment of a JPEG. Pillow copies the values of all fields, which may be the same bytes: up to 360 MB
for so many, and more with the square of the size."""

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
HEIC_BRANDS = (b"heic", b"heix")


def detect_format(data: bytes) -> str:
    """JPEG, PNG or WEBP by the first bytes; "" for any other format."""
    if data.startswith(JPEG):
        return "JPEG"
    if data.startswith(PNG):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def explain_size_refusal(width: int, height: int, max_pixels: int) -> str:
    """Why an image of this size is not decoded; "" if it is."""
    if width < 1 or height < 1:
        return f"damaged: its headers say {width}x{height}"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    return ""


MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # except those without a segment; more FF before it are padding
SCAN, APP1, EXIF = 0xDA, 0xE1, b"Exif\0\0"


def check_jpeg(data: bytes) -> None:
    """Raises UserError: more scans, segments or metadata than a photograph has."""
    if data.count(b"\xff\xda") > MAX_SCANS:  # compressed data have no such bytes
        raise UserError(f"more than {MAX_SCANS} scans")
    offset, exif = len(JPEG), 0
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(data, offset)
        if marker is None or marker[1][0] == SCAN:
            return
        start = marker.end()
        offset = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        exif += (offset - start) * (marker[1][0] == APP1 and data.startswith(EXIF, start + 2))
        if exif > MAX_EXIF:
            raise UserError(f"EXIF metadata of more than {MAX_EXIF} bytes")
    raise UserError(f"more than {MAX_SEGMENTS} segments before its pixels")


def can_read_heic() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_heic(data: bytes) -> bool:
    """Whether the brands in the first box are those of HEIC."""
    brand, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 1000)]
    general = brand == b"mif1" and any(name in others for name in HEIC_BRANDS)
    return data[4:8] == b"ftyp" and (brand in HEIC_BRANDS or general)


MAX_MEMORY, MAX_SECONDS = 2e9, 15.0
"""Bytes and processor time of one image. A limit on pixels above the default raises both in proportion."""
SMALL_MEMORY, EXPANSION = 8e8, 200
"""An image may take so many bytes, or this many times the size of its file if that is more, up to MAX_MEMORY."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def find_time_limit(max_pixels: int) -> float:
    return MAX_SECONDS * max(1.0, max_pixels / MAX_PIXELS)


@contextmanager
def limits(max_pixels: int, size: int, others: int = 0) -> Iterator[None]:
    """Ends this process if decoding an image of `size` bytes in the block takes too much processor time; too much
    memory, on Linux and with `others` bytes for other threads, is a MemoryError. For workers, whose parent calls
    `describe_exit`."""
    memory = min(MAX_MEMORY, max(SMALL_MEMORY, EXPANSION * size)) * max(1.0, max_pixels / MAX_PIXELS)
    limit_memory(int(memory) + others)
    signal.setitimer(signal.ITIMER_PROF, find_time_limit(max_pixels))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        limit_memory(None)


def limit_memory(more: int | None) -> None:
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
        return f"takes more than {find_time_limit(max_pixels):g} s of one core"
    if exit_code is not None and -exit_code in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exit_code).name})"
    return ""
