"""What an image file may cost: its header decides about memory and time before a pixel is decoded."""

from __future__ import annotations

import re
from typing import Any, Literal

MAX_PIXELS = 89_478_485
"""Default limit on width x height, Pillow's own threshold of a decompression bomb: 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view makes the shorter side S pixels long, so the longer one S times this."""

MAX_SCANS = 100
"""Of a progressive JPEG, each of which goes over the whole image. Encoders write 3 to 20."""

MAX_SEGMENTS = 100_000
"""Of a JPEG or PNG, each of which Pillow keeps. A large file of cameras and editors has some thousands."""

MAX_OVERDRAWN = 8
"""How often, on average, the parts of a file may cover the image; TIFF lists them, and may list one again and again."""

SMALL = 1_000_000  # pixels; below, parts may be larger than the image: a TIFF's tiles are of one size
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
TIFF = (b"II\x2a\0", b"II\x2b\0", b"II\0\x2a", b"MM\0\x2a", b"MM\0\x2b", b"MM\x2a\0")  # as Pillow takes them
BIG_TIFF = 0x2B
PARTS = (273, 279, 324, 325)  # tags of a TIFF: where its strips or tiles are, and how long
ICO = b"\0\0\1\0"
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # but for those that no segment follows; FF before is filling
SCAN, END = b"\xda", b"\xd9"


def refusal_unopened(data: bytes, max_pixels: int) -> str:
    """Why Pillow should not even look at the bytes; "" if it may."""
    if data.startswith(JPEG):
        return jpeg_refusal(data)
    if data.startswith(PNG) and png_has_more_chunks(data, MAX_SEGMENTS):
        return f"more than {MAX_SEGMENTS} chunks"
    if data.startswith(TIFF) and tiff_has_more_parts(data, MAX_SEGMENTS):
        return f"more than {MAX_SEGMENTS} strips or tiles"
    if data.startswith(ICO):
        return ico_refusal(data, max_pixels)
    return ""


def refusal(image: Any, max_pixels: int) -> str:
    """Why the image, which Pillow has opened, is not to be decoded; "" if it may be."""
    width, height = image.size
    if width < 1 or height < 1:
        return f"{width}x{height} has no pixels"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    if drawn(image) > MAX_OVERDRAWN * max(width * height, SMALL):
        return "its parts cover the image many times"
    return ""


def drawn(image: Any) -> int:
    """Pixels that Pillow's decoders will write."""
    return sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in image.tile)


def jpeg_refusal(data: bytes) -> str:
    """Counts segments up to the first scan, and scans to the image's end where there may be too many.

    A scan begins with FF DA. Within compressed data an FF is followed by 00 or a restart, so that it is no marker; in a
    segment, such as a thumbnail's, anything may follow, so segments are passed over by their length. The count of FF DA
    anywhere is cheap and never too small.
    """
    suspicious = data.count(b"\xff\xda") > MAX_SCANS
    scans, place = 0, len(JPEG)
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, place)
        if found is None or found[1] == END:
            return ""
        if found[1] == SCAN:
            if not suspicious:
                return ""
            scans += 1
            if scans > MAX_SCANS:
                return f"more than {MAX_SCANS} scans"
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    return f"more than {MAX_SEGMENTS} segments"


def png_has_more_chunks(data: bytes, limit: int) -> bool:
    place = len(PNG)
    for _ in range(limit):
        if place >= len(data):
            return False
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return True


def tiff_has_more_parts(data: bytes, limit: int) -> bool:
    """Whether the first directory has more entries, strips or tiles. Pillow makes an object of each before it tells the
    image's size."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    def more(head: int, wide: int) -> bool:
        """With the directory's offset at `head`, and counts and offsets of `wide` bytes."""
        short, entry = (2, 12) if wide == 4 else (8, 20)
        start = number(head, wide)
        entries = number(start, short)
        places = range(start + short, start + short + min(entries, limit) * entry, entry)
        return entries > limit or any(number(p, 2) in PARTS and number(p + 4, wide) > limit for p in places)

    if BIG_TIFF not in data[2:4]:
        return more(4, 4)
    return more(8, 8) or (data[3] == BIG_TIFF and more(4, 4))  # Pillow 13 takes the latter for a small one


def ico_refusal(data: bytes, max_pixels: int) -> str:
    """Of any image in an icon, for Pillow decodes one of them when it opens the file."""
    for place in range(6, min(6 + 16 * int.from_bytes(data[4:6], "little"), len(data)), 16):
        start = int.from_bytes(data[place + 12 : place + 16], "little")
        header = data[start : start + 24]
        if header.startswith(PNG):
            width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
        else:  # a bitmap's; its height counts the mask, too
            width, height = (abs(int.from_bytes(header[at : at + 4], "little", signed=True)) for at in (4, 8))
            height //= 2
        if width * height > max_pixels:
            return f"{width}x{height} is more than {max_pixels} pixels"
    return ""
