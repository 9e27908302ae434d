"""The cost of decoding a JPEG, PNG or WebP, estimated from its header, and the limits on the size of any image.

Images of these formats whose estimate is low are decoded by the process that needs them; all other images by a process
that is ended by its limits (bounds.py). This module does not use Pillow."""

import importlib.util
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from must.base.errors import UserError

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


def cost(data: bytes, parts: int = MAX_PARTS) -> Cost:
    """The cost of decoding the whole image to RGB. Nothing is decoded. `parts`: the most that are parsed."""
    kind = detect_format(data)
    if kind == "WEBP":
        return webp_cost(data)
    if not kind:
        raise UserError("not an image of a known format")
    return (jpeg_cost if kind == "JPEG" else png_cost)(data, parts)


def refusal(width: int, height: int, max_pixels: int) -> str:
    """Why an image of this size is not decoded; "" if it is."""
    if width < 1 or height < 1:
        return f"damaged: its headers say {width}x{height}"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    return ""


def number(data: bytes, offset: int, size: int, order: Literal["big", "little"] = "big") -> int:
    """An unsigned number of `size` bytes; bytes after the end of the data are zeros."""
    return int.from_bytes(data[offset : offset + size].ljust(size, b"\0"), order)


def too_many(parts: int) -> UserError:
    return UserError(f"its headers have more than {parts} parts")


# -- JPEG --------------------------------------------------------------------------------------------------------------
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # except those without a segment; more FF before it are padding
SCAN, END_MARKER, EXIF = 0xDA, 0xD9, b"Exif\0\0"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE, ARITHMETIC = frozenset({0xC2, 0xC6, 0xCA, 0xCE}), frozenset(range(0xC9, 0xD0))
GAP_SECONDS, SEGMENT_SECONDS = 4e-7, 9e-8  # per byte between two segments, and in one, which Pillow reads in Python
INK_NANOSECONDS = 60  # per pixel: conversion from CMYK by a colour profile


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
    """Raises ValueError: too many segments or scans, or metadata that is refused."""
    frame = width = height = components = scans = 0
    reading, exif = 0.0, []
    for kind, gap, start, length in jpeg_segments(data, parts):
        if kind == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise UserError(f"more than {MAX_SCANS} scans")
            if frame not in PROGRESSIVE and number(data, start + 2, 1) == components:
                break  # all components are in it: decoders read no other scan
        elif scans and kind == END_MARKER:
            break
        elif not scans:
            reading += PART_SECONDS + GAP_SECONDS * gap + SEGMENT_SECONDS * length
            if kind in FRAME_MARKERS:
                frame, components = kind, number(data, start + 7, 1)
                width, height = number(data, start + 5, 2), number(data, start + 3, 2)
            elif kind == 0xE1 and data[start + 2 : start + 8] == EXIF:
                exif.append(data[start + 8 : start + length])
    if refused := exif_refusal(b"".join(exif)):
        raise UserError(refused)
    pixels, components = width * height, max(components, 1)
    buffered = frame in PROGRESSIVE or scans > 1
    memory = len(data) + SLACK + pixels * max(RGB_BYTES, (2 * components if buffered else 0) + 4)
    nanoseconds = 25 + max(1, scans) * components / 3 * (12 if frame in ARITHMETIC else 2)
    nanoseconds += INK_NANOSECONDS if components == 4 else 0
    return Cost("JPEG", width, height, memory, (nanoseconds * pixels + 20 * len(data)) / 1e9 + reading)


FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def exif_refusal(exif: bytes) -> str:
    """Why Pillow must not parse this EXIF, which is a TIFF's directory; "" if it may. Pillow copies the values of all
    fields, which may be the same bytes."""
    data = exif.removeprefix(EXIF)
    if len(data) > MAX_EXIF or data[2:3] == b"\x2b":
        return f"metadata of more than {MAX_EXIF} bytes, or in the form of a BigTIFF"
    order: Literal["big", "little"] = "little" if data[:1] == b"I" else "big"
    start = number(data, 4, 4, order)
    fields = range(start + 2, min(start + 2 + 12 * number(data, start, 2, order), len(data)), 12)
    sizes = (FIELD_BYTES.get(number(data, at + 2, 2, order), 0) * number(data, at + 4, 4, order) for at in fields)
    copied = sum(size for size in sizes if size > 4)  # shorter values lie in the field
    return "its metadata point at the same bytes many times" if copied > 2 * len(exif) + 1000 else ""


# -- PNG, WebP and HEIC ------------------------------------------------------------------------------------------------
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
COMPRESSED_CHUNKS, EXPANDING_SECONDS = (b"iCCP", b"zTXt", b"iTXt"), 1.2e-3  # Pillow makes a megabyte of each, at most


def png_cost(data: bytes, parts: int) -> Cost:
    """Raises ValueError: too many chunks, or no header, which is the first one."""
    offset, chunks, reading = len(PNG), 0, 0.0
    if data[12:16] != b"IHDR":
        raise UserError("no header")
    while offset < len(data):
        chunks += 1
        if chunks > parts:
            raise too_many(parts)
        reading += EXPANDING_SECONDS if data[offset + 4 : offset + 8] in COMPRESSED_CHUNKS else PART_SECONDS
        offset += 12 + number(data, offset, 4)
    width, height, depth, color = (number(data, at, size) for at, size in ((16, 4), (20, 4), (24, 1), (25, 1)))
    pixels, samples = width * height, CHANNELS.get(color, 4) * max(1, depth / 8)
    seconds = (pixels * (17 + 4 * samples) + 5 * len(data)) / 1e9 + reading
    return Cost("PNG", width, height, len(data) + RGB_BYTES * pixels + SLACK, seconds)


def webp_cost(data: bytes) -> Cost:
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
    return importlib.util.find_spec("pillow_heif") is not None


def is_heic(data: bytes) -> bool:
    """Whether the brands in the first box are those of HEIC."""
    brand, others = data[8:12], data[16 : min(number(data, 0, 4), 1000)]
    general = brand == b"mif1" and any(name in others for name in HEIC_BRANDS)
    return data[4:8] == b"ftyp" and (brand in HEIC_BRANDS or general)
