"""The cost of decoding a JPEG, PNG or WebP, estimated from its header, and limits on the size of any image.

These three are decoded by the process that needs them. Images of other formats are decoded by a process that is ended
by its limits (bounds.py), so nothing is estimated for them. This module does not use Pillow.
"""

import importlib.util
import re
from collections.abc import Iterator
from typing import NamedTuple

from must.base.errors import UserError

MAX_PIXELS = 89_478_485
"""Default limit on width x height: Pillow's threshold for decompression bombs, 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view with a shorter side of S pixels has a longer one of up to S times this."""

MAX_MEMORY, MAX_SECONDS = 1e9, 5.0
"""Bytes and seconds that decoding one image may take. A limit on pixels above the default raises both in proportion."""

MAX_PARTS = 200_000
"""The most segments, chunks or fields of one file that are parsed."""

MAX_SCANS = 100
"""Of a progressive JPEG, in which each scan covers the whole image. Encoders write 3 to 20."""

RGB_BYTES = 8  # per pixel of any image: RGB in Pillow's memory layout (4), and a second copy while it is rotated
SLACK = 16_000_000  # bytes for the strip that is being converted, which does not depend on the size of the image
SEGMENT_SECONDS = 7e-6  # that Pillow takes for each segment or chunk, whatever its content
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
PLUGIN, HEIC_BRANDS = "pillow_heif", (b"heic", b"heix")


class Cost(NamedTuple):
    """`memory`: bytes at the peak, including the file's; `seconds`: on one core of about 3 GHz. Upper estimates."""

    format: str  # Pillow's name
    width: int
    height: int
    memory: int
    seconds: float

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def megapixels(self) -> float:
        """The size of the image, or that of a plain image which takes the same time, if that is larger."""
        return max(self.pixels / 1e6, self.seconds / 50e-3)


def detect_format(data: bytes) -> str:
    """JPEG, PNG or WEBP by the first bytes; "" for any other format."""
    if data.startswith(JPEG):
        return "JPEG"
    if data.startswith(PNG):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def cost(data: bytes, parts: int = MAX_PARTS) -> Cost:
    """The cost of decoding the whole image to RGB. Nothing is decoded. `parts`: the most that are parsed."""
    kind = detect_format(data)
    if not kind:
        raise UserError("not an image of a known format")
    return {"JPEG": jpeg_cost, "PNG": png_cost, "WEBP": webp_cost}[kind](data, parts)


def refusal(estimate: Cost, max_pixels: int) -> str:
    """Why an image of that cost is not decoded; "" if it is.

    Memory and time are limited to 1 GB and 5 s, or to 11 bytes and 56 ns per pixel of a larger `max_pixels`.
    """
    if problem := size_refusal(estimate.width, estimate.height, max_pixels):
        return problem
    share = max(1.0, max_pixels / MAX_PIXELS)
    if estimate.memory > share * MAX_MEMORY:
        return f"decoding it takes about {estimate.memory / 1e6:.0f} MB; {share * MAX_MEMORY / 1e6:.0f} are allowed"
    if estimate.seconds > share * MAX_SECONDS:
        return f"decoding it takes about {estimate.seconds:.0f} s; {share * MAX_SECONDS:.1f} are allowed"
    return ""


def size_refusal(width: int, height: int, max_pixels: int) -> str:
    """Why an image of this size is not decoded; "" if it is."""
    if width < 1 or height < 1:
        return f"{width}x{height} has no pixels"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    return ""


def number(data: bytes, offset: int, size: int, order: str = "big") -> int:
    """An unsigned number of `size` bytes; bytes after the end of the data are zeros."""
    return int.from_bytes(data[offset : offset + size].ljust(size, b"\0"), order)  # type: ignore[arg-type]


def too_many(parts: int) -> UserError:
    return UserError(f"its headers have more than {parts} parts")


# -- JPEG --------------------------------------------------------------------------------------------------------------
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # except those without a segment; more FF before it are padding
SCAN, END_MARKER, EXIF = 0xDA, 0xD9, b"Exif\0\0"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE, ARITHMETIC = frozenset({0xC2, 0xC6, 0xCA, 0xCE}), frozenset(range(0xC9, 0xD0))
COPY_RATE = 2e9  # bytes per second when Pillow joins the segments of EXIF, one after the other
GAP_SECONDS = 4e-7  # per byte between two segments, which Pillow reads one byte at a time
TABLE_SECONDS = 9e-8  # per byte of tables and of Photoshop's segments, which Pillow parses in Python
PROFILE_NANOSECONDS = 60  # per pixel: conversion from CMYK by a colour profile


def jpeg_segments(data: bytes, parts: int) -> Iterator[tuple[int, int, int, int]]:
    """(marker, bytes before it, start, length) of the segments. In compressed data an FF is followed by 00 or a
    restart, which is no marker. A segment, such as one with a thumbnail, may hold any bytes, and is skipped."""
    offset = len(JPEG)
    for _ in range(parts):
        if (marker := MARKER.search(data, offset)) is None:
            return
        kind, start = marker[1][0], marker.end()
        length = 0 if kind == END_MARKER else max(2, number(data, start, 2))
        yield kind, marker.start() - offset, start, length
        offset = start + length
    raise too_many(parts)


def jpeg_cost(data: bytes, parts: int) -> Cost:
    """Raises ValueError: too many segments or scans, two frames, or metadata that is refused."""
    frame = width = height = components = scans = joined = copied = 0
    reading, profiled, exif = 0.0, False, []
    for kind, gap, start, length in jpeg_segments(data, parts):
        if kind == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise UserError(f"more than {MAX_SCANS} scans")
            if frame not in PROGRESSIVE and number(data, start + 2, 1) == components:
                break  # all components are in it: decoders read no other scan
            if scans == 1 and data.find(b"\xff\xda", start) < 0:  # a fast, upper limit on the others
                break
        if scans:
            if kind == END_MARKER:
                break
            continue
        reading += SEGMENT_SECONDS + GAP_SECONDS * gap
        if kind in FRAME_MARKERS:
            if frame:
                raise UserError("two frames: decoders differ in which they decode")
            frame, components = kind, number(data, start + 7, 1)
            width, height = number(data, start + 5, 2), number(data, start + 3, 2)
        elif kind == 0xE1 and data[start + 2 : start + 8] == EXIF:
            joined += length
            copied += joined
            exif.append(data[start + 8 : start + length])
        elif kind in (0xDB, 0xED):
            reading += TABLE_SECONDS * length
        elif kind == 0xE2 and data[start + 2 : start + 14] == b"ICC_PROFILE\0":
            profiled = True
    if exif and (refused := exif_refusal(b"".join(exif), parts)):
        raise UserError(refused)
    pixels, components = width * height, max(components, 1)
    buffered = frame in PROGRESSIVE or scans > 1
    memory = len(data) + SLACK + pixels * max(RGB_BYTES, (2 * components if buffered else 0) + 4) + 2 * joined
    nanoseconds = 25 * pixels + pixels * max(1, scans) * components / 3 * (12 if frame in ARITHMETIC else 2)
    nanoseconds += (20 if buffered else 10) * len(data)
    nanoseconds += PROFILE_NANOSECONDS * pixels if profiled and components == 4 else 0
    return Cost("JPEG", width, height, memory, nanoseconds / 1e9 + reading + copied / COPY_RATE)


FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MAX_VALUES = 100_000  # of a field whose values Pillow converts one by one; those of types 1, 2, 6 and 7 stay bytes


def exif_refusal(exif: bytes, parts: int = MAX_PARTS) -> str:
    """Why Pillow must not parse this EXIF, which is a TIFF's directory; "" if it may."""
    data = exif.removeprefix(EXIF)
    order, wide = "little" if data[:1] == b"I" else "big", 8 if data[2:3] == b"\x2b" else 4
    short, step = (2, 12) if wide == 4 else (8, 20)
    start = number(data, wide, wide, order)
    entries, values = number(data, start, short, order), 0
    if entries > min(parts, MAX_VALUES):
        return f"more than {min(parts, MAX_VALUES)} values in a field of its metadata"
    for offset in range(start + short, min(start + short + entries * step, len(data)), step):
        kind, count = number(data, offset + 2, 2, order), number(data, offset + 4, wide, order)
        if count > MAX_VALUES and kind not in (1, 2, 6, 7):
            return f"more than {MAX_VALUES} values in a field of its metadata"
        size = FIELD_BYTES.get(kind, 0) * count
        values += size if size > wide else 0
    return "its metadata point at the same bytes many times" if values > 2 * len(exif) + 1000 else ""


# -- PNG, WebP and HEIC ------------------------------------------------------------------------------------------------
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
COMPRESSED_CHUNKS, MAX_EXPANDED = (b"iCCP", b"zTXt", b"iTXt"), 1_000_000  # the most bytes that Pillow makes of one


def png_cost(data: bytes, parts: int) -> Cost:
    """Raises ValueError: too many chunks, or not one header."""
    offset, heads, reading, chunks = len(PNG), [], 0.0, 0
    while offset < len(data):
        chunks += 1
        if chunks > parts:
            raise too_many(parts)
        name, length = data[offset + 4 : offset + 8], number(data, offset, 4)
        if name == b"IHDR":
            heads.append(offset + 8)
        elif name in COMPRESSED_CHUNKS:
            reading += 1.2e-9 * min(MAX_EXPANDED, 1032 * length)
        reading += SEGMENT_SECONDS
        offset += 12 + length
    if len(heads) != 1:
        raise UserError("no header" if not heads else "two headers: decoders differ in their use")
    width, height, depth, color = (number(data, heads[0] + at, size) for at, size in ((0, 4), (4, 4), (8, 1), (9, 1)))
    pixels, samples = width * height, CHANNELS.get(color, 4) * max(1, depth / 8)
    seconds = (pixels * (17 + 4 * samples) + 5 * len(data)) / 1e9 + reading
    return Cost("PNG", width, height, len(data) + RGB_BYTES * pixels + SLACK, seconds)


def webp_cost(data: bytes, parts: int) -> Cost:
    """Pillow decodes by way of the animation decoder: two canvases, the image as bytes, and Pillow's own copy."""
    head = data[12:16]
    if head == b"VP8X":
        width, height = number(data, 24, 3, "little") + 1, number(data, 27, 3, "little") + 1
    elif head == b"VP8 ":
        width, height = number(data, 26, 2, "little") & 0x3FFF, number(data, 28, 2, "little") & 0x3FFF
    elif head == b"VP8L":
        bits = number(data, 21, 4, "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise UserError("not an image of a known format")
    pixels = width * height
    return Cost("WEBP", width, height, len(data) + 17 * pixels + SLACK, (37 * pixels + 20 * len(data)) / 1e9)


def can_read_heic() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec(PLUGIN) is not None


def is_heic(data: bytes) -> bool:
    """Whether the brands in the first box are those of HEIC."""
    brand, others = data[8:12], data[16 : min(number(data, 0, 4), 1000)]
    general = brand == b"mif1" and any(name in others for name in HEIC_BRANDS)
    return data[4:8] == b"ftyp" and (brand in HEIC_BRANDS or general)
