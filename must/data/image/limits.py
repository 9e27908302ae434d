"""Limits on what an image may cost: an estimate from its header, and limits that the operating system enforces.

The cost of decoding a JPEG, PNG or WebP is estimated from its header. If it is low, the process that needs the image
decodes it; all other images, and headers that understate the cost, meet the limits on memory and time of a process
that is ended by them."""

import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from must.base.console import silence_pillow
from must.base.errors import UserError
from must.base.processes import KilledWorkerError, per_process
from must.data.image.preprocess import strips

MAX_PIXELS = 89_478_485
"""Default limit on width x height: Pillow's threshold for decompression bombs, 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view with a shorter side of S pixels has a longer one of up to S times this."""

MAX_PARTS = 200_000
"""The most segments or chunks of one file that are parsed."""

MAX_SCANS = 100
"""Of a progressive JPEG, in which each scan covers the whole image. Encoders write 3 to 20."""

MAX_EXIF = 16_000_000  # bytes, as a camera's preview may have
RGB_BYTES = 8  # per pixel of any image: RGB in Pillow's memory layout (4), and a second copy while it is rotated
SLACK = 16_000_000  # bytes for the strip that is being converted, which does not depend on the size of the image
PART_SECONDS = 7e-6  # that Pillow takes for each segment or chunk, whatever its content
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
HEIC_BRANDS = (b"heic", b"heix")


class Cost(NamedTuple):
    """`memory`: bytes at the peak, including the file's; `seconds`: on one core of about 3 GHz. Upper estimates."""

    format: str  # Pillow's name
    width: int
    height: int
    memory: int
    seconds: float

    @property
    def megapixels(self) -> float:
        """The size of the image, or that of a plain image which takes the same time, if that is larger."""
        return max(self.width * self.height / 1e6, self.seconds / 50e-3)


def detect_format(data: bytes) -> str:
    """JPEG, PNG or WEBP by the first bytes; "" for any other format."""
    if data.startswith(JPEG):
        return "JPEG"
    if data.startswith(PNG):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def estimate_decoding(data: bytes, parts: int = MAX_PARTS) -> Cost:
    """The cost of decoding the whole image to RGB. Nothing is decoded. `parts`: the most that are parsed."""
    kind = detect_format(data)
    if kind == "WEBP":
        return estimate_webp_cost(data)
    if not kind:
        raise UserError("not an image of a known format")
    return (estimate_jpeg_cost if kind == "JPEG" else estimate_png_cost)(data, parts)


def explain_size_refusal(width: int, height: int, max_pixels: int) -> str:
    """Why an image of this size is not decoded; "" if it is."""
    if width < 1 or height < 1:
        return f"damaged: its headers say {width}x{height}"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    return ""


def read_number(data: bytes, offset: int, size: int, order: Literal["big", "little"] = "big") -> int:
    """An unsigned number of `size` bytes; bytes after the end of the data are zeros."""
    return int.from_bytes(data[offset : offset + size].ljust(size, b"\0"), order)


def make_too_many_error(parts: int) -> UserError:
    return UserError(f"its headers have more than {parts} parts")


# -- JPEG --------------------------------------------------------------------------------------------------------------
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # except those without a segment; more FF before it are padding
SCAN, END_MARKER, EXIF = 0xDA, 0xD9, b"Exif\0\0"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE, ARITHMETIC = frozenset({0xC2, 0xC6, 0xCA, 0xCE}), frozenset(range(0xC9, 0xD0))
GAP_SECONDS, SEGMENT_SECONDS = 4e-7, 9e-8  # per byte between two segments, and in one, which Pillow reads in Python
INK_NANOSECONDS = 60  # per pixel: conversion from CMYK by a colour profile


def list_jpeg_segments(data: bytes, parts: int) -> Iterator[tuple[int, int, int, int]]:
    """(marker, bytes before it, start, length) of the segments. In compressed data an FF is followed by 00 or a
    restart, which is no marker. A segment, such as one with a thumbnail, may hold any bytes, and is skipped."""
    offset = len(JPEG)
    for _ in range(parts):
        if (marker := MARKER.search(data, offset)) is None:
            return
        kind, start = marker[1][0], marker.end()
        length = 0 if kind == END_MARKER else max(2, read_number(data, start, 2))
        yield kind, marker.start() - offset, start, length
        offset = start + length
    raise make_too_many_error(parts)


def estimate_jpeg_cost(data: bytes, parts: int) -> Cost:
    """Raises ValueError: too many segments or scans, or metadata that is refused."""
    frame = width = height = components = scans = 0
    reading, exif = 0.0, []
    for kind, gap, start, length in list_jpeg_segments(data, parts):
        if kind == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise UserError(f"more than {MAX_SCANS} scans")
            if frame not in PROGRESSIVE and read_number(data, start + 2, 1) == components:
                break  # all components are in it: decoders read no other scan
        elif scans and kind == END_MARKER:
            break
        elif not scans:
            reading += PART_SECONDS + GAP_SECONDS * gap + SEGMENT_SECONDS * length
            if kind in FRAME_MARKERS:
                frame, components = kind, read_number(data, start + 7, 1)
                width, height = read_number(data, start + 5, 2), read_number(data, start + 3, 2)
            elif kind == 0xE1 and data[start + 2 : start + 8] == EXIF:
                exif.append(data[start + 8 : start + length])
    if refused := explain_exif_refusal(b"".join(exif)):
        raise UserError(refused)
    pixels, components = width * height, max(components, 1)
    buffered = frame in PROGRESSIVE or scans > 1
    memory = len(data) + SLACK + pixels * max(RGB_BYTES, (2 * components if buffered else 0) + 4)
    nanoseconds = 25 + max(1, scans) * components / 3 * (12 if frame in ARITHMETIC else 2)
    nanoseconds += INK_NANOSECONDS if components == 4 else 0
    return Cost("JPEG", width, height, memory, (nanoseconds * pixels + 20 * len(data)) / 1e9 + reading)


FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def explain_exif_refusal(exif: bytes) -> str:
    """Why Pillow must not parse this EXIF, which is a TIFF's directory; "" if it may. Pillow copies the values of all
    fields, which may be the same bytes."""
    data = exif.removeprefix(EXIF)
    if len(data) > MAX_EXIF or data[2:3] == b"\x2b":
        return f"metadata of more than {MAX_EXIF} bytes, or in the form of a BigTIFF"
    order: Literal["big", "little"] = "little" if data[:1] == b"I" else "big"
    start = read_number(data, 4, 4, order)
    fields = range(start + 2, min(start + 2 + 12 * read_number(data, start, 2, order), len(data)), 12)
    sizes = (
        FIELD_BYTES.get(read_number(data, at + 2, 2, order), 0) * read_number(data, at + 4, 4, order) for at in fields
    )
    copied = sum(size for size in sizes if size > 4)  # shorter values lie in the field
    return "its metadata point at the same bytes many times" if copied > 2 * len(exif) + 1000 else ""


# -- PNG, WebP and HEIC ------------------------------------------------------------------------------------------------
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
COMPRESSED_CHUNKS, EXPANDING_SECONDS = (b"iCCP", b"zTXt", b"iTXt"), 1.2e-3  # Pillow makes a megabyte of each, at most


def estimate_png_cost(data: bytes, parts: int) -> Cost:
    """Raises ValueError: too many chunks, or no header, which is the first one."""
    offset, chunks, reading = len(PNG), 0, 0.0
    if data[12:16] != b"IHDR":
        raise UserError("no header")
    while offset < len(data):
        chunks += 1
        if chunks > parts:
            raise make_too_many_error(parts)
        reading += EXPANDING_SECONDS if data[offset + 4 : offset + 8] in COMPRESSED_CHUNKS else PART_SECONDS
        offset += 12 + read_number(data, offset, 4)
    width, height, depth, color = (read_number(data, at, size) for at, size in ((16, 4), (20, 4), (24, 1), (25, 1)))
    pixels, samples = width * height, CHANNELS.get(color, 4) * max(1, depth / 8)
    seconds = (pixels * (17 + 4 * samples) + 5 * len(data)) / 1e9 + reading
    return Cost("PNG", width, height, len(data) + RGB_BYTES * pixels + SLACK, seconds)


def estimate_webp_cost(data: bytes) -> Cost:
    """Pillow decodes by way of the animation decoder: two canvases, the image as bytes, and Pillow's own copy."""
    head = data[12:16]
    if head == b"VP8X":
        width, height = read_number(data, 24, 3, "little") + 1, read_number(data, 27, 3, "little") + 1
    elif head == b"VP8 ":
        width, height = read_number(data, 26, 2, "little") & 0x3FFF, read_number(data, 28, 2, "little") & 0x3FFF
    elif head == b"VP8L":
        bits = read_number(data, 21, 4, "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise UserError("not an image of a known format")
    pixels = width * height
    return Cost("WEBP", width, height, len(data) + 17 * pixels + SLACK, (37 * pixels + 20 * len(data)) / 1e9)


def can_read_heic() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_heic(data: bytes) -> bool:
    """Whether the brands in the first box are those of HEIC."""
    brand, others = data[8:12], data[16 : min(read_number(data, 0, 4), 1000)]
    general = brand == b"mif1" and any(name in others for name in HEIC_BRANDS)
    return data[4:8] == b"ftyp" and (brand in HEIC_BRANDS or general)


MAX_MEMORY, MAX_SECONDS = 2e9, 15.0
"""Bytes and processor time of one image. A limit on pixels above the default raises both in proportion."""
SMALL_MEMORY, EXPANSION = 8e8, 200
"""An image may take so many bytes, or this many times the size of its file if that is more, up to MAX_MEMORY."""

memory_limited = False
"""Whether this process is such a worker, which decodes images inside `limits`."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def find_time_limit(max_pixels: int) -> float:
    return MAX_SECONDS * max(1.0, max_pixels / MAX_PIXELS)


def find_memory_limit(max_pixels: int, size: int) -> int:
    """Bytes that an image in a file of `size` bytes may take."""
    return int(min(MAX_MEMORY, max(SMALL_MEMORY, EXPANSION * size)) * max(1.0, max_pixels / MAX_PIXELS))


@contextmanager
def limits(max_pixels: int, size: int, others: int = 0) -> Iterator[None]:
    """Ends this process if decoding an image of `size` bytes in the block takes too much processor time; too much
    memory, on Linux and with `others` bytes for other threads, is a MemoryError. For workers, whose parent calls
    `describe_exit`."""
    global memory_limited
    memory_limited = True
    set_memory(find_memory_limit(max_pixels, size) + others)
    signal.setitimer(signal.ITIMER_PROF, find_time_limit(max_pixels))
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
        return f"takes more than {find_time_limit(max_pixels):g} s of one core"
    if exit_code is not None and -exit_code in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exit_code).name})"
    return ""


SIZE_OF_IMAGE = struct.Struct("<QQ")  # of the image in an answer, both 0 for an error
PROGRAM = "from must.data.image.decode import decode; from must.data.image.limits import work; work(decode)"


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
