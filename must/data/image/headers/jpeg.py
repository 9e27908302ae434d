"""JPEG: segments up to the first scan as Pillow walks them, and scans to the picture's end."""

import re

from must.base.errors import UserError
from must.data.image.headers.base import A_SEGMENT, FINAL, PROFILED, SLACK, Cost, Steps, number
from must.data.image.headers.directory import directory_refusal

JPEG = b"\xff\xd8"
MAX_SCANS = 100
"""Of a progressive JPEG, each of which goes over the whole image. Encoders write 3 to 20."""

MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # but for those that no segment follows; FF before is filling
SCAN, END, EXIF = b"\xda", b"\xd9", b"Exif\0\0"
FRAMES = frozenset(bytes([n]) for n in range(0xC0, 0xD0) if n not in (0xC4, 0xC8, 0xCC))
PROGRESSIVE = frozenset(bytes([n]) for n in (0xC2, 0xC6, 0xCA, 0xCE))
ARITHMETIC = frozenset(bytes([n]) for n in range(0xC9, 0xD0))
COPYING = 2e9  # bytes a second, with which Pillow joins the segments of EXIF, one after the other
STEPPING = 4e-7  # seconds a byte between two segments, which Pillow reads one at a time
TABLES, PHOTOSHOP = b"\xdb", b"\xed"  # segments whose parts Pillow takes apart in Python
PARTS = 9e-8  # seconds a byte of these
PROFILE = b"ICC_PROFILE\0"


def jpeg_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many segments or scans, two frames, or metadata that point at themselves."""
    frame, place, joined, copied, reading, exif = b"", len(JPEG), 0, 0, 0.0, []
    size, components, profiled = (0, 0), 0, False
    while (found := MARKER.search(data, place)) is not None and found[1] != SCAN:
        steps.take()
        reading += A_SEGMENT + STEPPING * (found.start() - place)
        start = found.end()
        if found[1] == END:
            place = start
            continue
        length = max(2, number(data, start, 2))
        if found[1] in FRAMES:
            if frame:
                raise UserError("two frames: decoders differ in which they decode")
            frame = found[1]
            size, components = (number(data, start + 5, 2), number(data, start + 3, 2)), number(data, start + 7, 1)
        elif found[1] == b"\xe1" and data[start + 2 : start + 8] == EXIF:
            joined += length
            copied += joined
            exif.append(data[start + 8 : start + length])
        elif found[1] in (TABLES, PHOTOSHOP):
            reading += PARTS * length
        elif found[1] == b"\xe2" and data[start + 2 : start + 14] == PROFILE:
            profiled = True
        place = start + length
    if exif and (refused := directory_refusal(b"".join(exif), steps)):
        raise UserError(refused)
    count = count_scans(data, place, steps) if found is not None else 0
    width, height = size
    pixels = width * height
    buffered = frame in PROGRESSIVE or count > 1
    coefficients = 2 * max(components, 1) if buffered else 0
    memory = len(data) + SLACK + pixels * max(FINAL, coefficients + 4) + 2 * joined
    a_scan = pixels * max(1, count) * max(components, 1) / 3 * (12 if frame in ARITHMETIC else 2)
    work = 25 * pixels + a_scan + (20 if buffered else 10) * len(data)
    if profiled and components == 4:
        work += PROFILED * pixels
    return Cost("JPEG", width, height, memory, work / 1e9 + reading + copied / COPYING)


def count_scans(data: bytes, place: int, steps: Steps) -> int:
    """Scans from the first one on, which begins at `place`. Raises ValueError: too many scans or segments.

    A scan begins with FF DA. Within compressed data an FF is followed by 00 or a restart, so that it is no marker; in a
    segment, such as a thumbnail's, anything may follow, so segments are passed over by their length. The count of FF DA
    anywhere is cheap and never too small.
    """
    if data.count(b"\xff\xda", place) <= 1:
        return 1
    scans = 0
    while (found := MARKER.search(data, place)) is not None and found[1] != END:
        steps.take()
        if found[1] == SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise UserError(f"more than {MAX_SCANS} scans")
        place = found.end() + max(2, number(data, found.end(), 2))
    return scans
