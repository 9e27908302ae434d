"""JPEG: segments up to the first scan, in the way Pillow reads them, and scans up to the end of the image."""

import re

from must.base.errors import UserError
from must.data.image.headers.base import PROFILE_NANOSECONDS, RGB_BYTES, SEGMENT_SECONDS, SLACK, Cost, Steps, number
from must.data.image.headers.directory import directory_refusal

JPEG = b"\xff\xd8"
MAX_SCANS = 100
"""Of a progressive JPEG, in which each scan covers the whole image. Encoders write 3 to 20."""

MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # except those without a segment; more FF before it are padding
SCAN, END, EXIF = b"\xda", b"\xd9", b"Exif\0\0"
FRAMES = frozenset(bytes([n]) for n in range(0xC0, 0xD0) if n not in (0xC4, 0xC8, 0xCC))
PROGRESSIVE = frozenset(bytes([n]) for n in (0xC2, 0xC6, 0xCA, 0xCE))
ARITHMETIC = frozenset(bytes([n]) for n in range(0xC9, 0xD0))
COPY_RATE = 2e9  # bytes per second when Pillow joins the segments of EXIF, one after the other
GAP_SECONDS = 4e-7  # per byte between two segments, which Pillow reads one byte at a time
TABLES, PHOTOSHOP = b"\xdb", b"\xed"  # segments that Pillow parses in Python
TABLE_SECONDS = 9e-8  # per byte of these
PROFILE = b"ICC_PROFILE\0"


def jpeg_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many segments or scans, two frames, or metadata that is refused."""
    frame, offset, joined, copied, reading, exif = b"", len(JPEG), 0, 0, 0.0, []
    size, components, profiled = (0, 0), 0, False
    while (marker := MARKER.search(data, offset)) is not None and marker[1] != SCAN:
        steps.take()
        reading += SEGMENT_SECONDS + GAP_SECONDS * (marker.start() - offset)
        start = marker.end()
        if marker[1] == END:
            offset = start
            continue
        length = max(2, number(data, start, 2))
        if marker[1] in FRAMES:
            if frame:
                raise UserError("two frames: decoders differ in which they decode")
            frame = marker[1]
            size, components = (number(data, start + 5, 2), number(data, start + 3, 2)), number(data, start + 7, 1)
        elif marker[1] == b"\xe1" and data[start + 2 : start + 8] == EXIF:
            joined += length
            copied += joined
            exif.append(data[start + 8 : start + length])
        elif marker[1] in (TABLES, PHOTOSHOP):
            reading += TABLE_SECONDS * length
        elif marker[1] == b"\xe2" and data[start + 2 : start + 14] == PROFILE:
            profiled = True
        offset = start + length
    if exif and (refused := directory_refusal(b"".join(exif), steps)):
        raise UserError(refused)
    count = count_scans(data, offset, steps) if marker is not None else 0
    width, height = size
    pixels = width * height
    buffered = frame in PROGRESSIVE or count > 1
    coefficients = 2 * max(components, 1) if buffered else 0
    memory = len(data) + SLACK + pixels * max(RGB_BYTES, coefficients + 4) + 2 * joined
    scan_work = pixels * max(1, count) * max(components, 1) / 3 * (12 if frame in ARITHMETIC else 2)
    nanoseconds = 25 * pixels + scan_work + (20 if buffered else 10) * len(data)
    if profiled and components == 4:
        nanoseconds += PROFILE_NANOSECONDS * pixels
    return Cost("JPEG", width, height, memory, nanoseconds / 1e9 + reading + copied / COPY_RATE)


def count_scans(data: bytes, offset: int, steps: Steps) -> int:
    """The number of scans; the first one begins at `offset`. Raises ValueError: too many scans or segments.

    A scan begins with FF DA. In compressed data an FF is followed by 00 or a restart, which is no marker. A segment,
    such as one with a thumbnail, may hold any bytes, so segments are skipped by their length. The count of FF DA
    anywhere is fast, and an upper limit.
    """
    if data.count(b"\xff\xda", offset) <= 1:
        return 1
    scans = 0
    while (marker := MARKER.search(data, offset)) is not None and marker[1] != END:
        steps.take()
        if marker[1] == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise UserError(f"more than {MAX_SCANS} scans")
        offset = marker.end() + max(2, number(data, marker.end(), 2))
    return scans
