"""JPEG and TIFF: a JPEG's EXIF is a TIFF directory, and the parts of a TIFF may be JPEGs.

A JPEG's segments up to the first scan are read in the way Pillow reads them, then the scans up to the end of the image.
The memory and work for a TIFF depend on the strips or tiles as well as on the size of the image.
"""

import re
from math import prod
from typing import NamedTuple

from must.base.errors import UserError
from must.data.image.headers.base import (
    MAX_SEGMENTS,
    PROFILE_NANOSECONDS,
    RGB_BYTES,
    SEGMENT_SECONDS,
    SLACK,
    Cost,
    Steps,
    number,
)

STARTS = (b"II\x2a\0", b"II\x2b\0", b"II\0\x2a", b"MM\0\x2a", b"MM\x2a\0")  # those that Pillow accepts, except MM\0\x2b
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTES = (1, 2, 6, 7)  # types that stay bytes; Pillow converts any other to a tuple of numbers


class Field(NamedTuple):
    kind: int
    length: int  # number of values
    offset: int  # of the first value


class Directory:
    """The first directory of a file, or the one at `at`. `bytes`: of all values outside the directory itself.

    Raises ValueError: too long, or the first directory has a field twice, which decoders treat differently.
    """

    def __init__(self, data: bytes, steps: Steps, parts: str = "strips or tiles", at: int = 0) -> None:
        self.data, self.steps, self.order = data, steps, "little" if data[:1] == b"I" else "big"
        wide = 8 if data[2:4] == b"\x2b\0" else 4
        short, entry = (2, 12) if wide == 4 else (8, 20)
        start = at or number(data, wide, wide, self.order)
        self.entries = number(data, start, short, self.order)
        if self.entries > MAX_SEGMENTS:
            raise UserError(f"more than {MAX_SEGMENTS} {parts}")
        self.fields: dict[int, Field] = {}
        self.bytes = 0
        for offset in range(start + short, min(start + short + self.entries * entry, len(data)), entry):
            steps.take()
            tag, kind = number(data, offset, 2, self.order), number(data, offset + 2, 2, self.order)
            count = number(data, offset + 4, wide, self.order)
            size = SIZES.get(kind, 0) * count
            if count > MAX_SEGMENTS and (kind not in BYTES or tag in (273, 279, 324, 325)):
                raise UserError(f"more than {MAX_SEGMENTS} {parts}")
            if tag in self.fields and at:
                continue  # as Pillow does
            if tag in self.fields:
                raise UserError(f"its directory has the field {tag} twice")
            value_offset = offset + 4 + wide
            if size > wide:
                value_offset, self.bytes = number(data, value_offset, wide, self.order), self.bytes + size
            self.fields[tag] = Field(kind, count, value_offset)

    def values(self, tag: int) -> list[int]:
        """The integers of a field; [] if the field is missing or of another type."""
        kind, count, offset = self.fields.get(tag, Field(0, 0, 0))
        size = SIZES.get(kind, 0)
        if kind not in (1, 3, 4, 6, 8, 9, 13, 16, 17, 18):
            return []
        count = min(count, max(0, len(self.data) - offset) // size)
        self.steps.take(count)
        return [number(self.data, offset + size * n, size, self.order) for n in range(count)]

    def value(self, tag: int, otherwise: int = 0) -> int:
        """The largest of a field's numbers."""
        return max(self.values(tag), default=otherwise)


def directory_refusal(exif: bytes, steps: Steps | None = None) -> str:
    """Why this EXIF must not be parsed; "" if it may be."""
    try:
        directory = Directory(exif.removeprefix(b"Exif\0\0"), steps or Steps(), "values in a field of its metadata")
    except ValueError as error:
        return str(error)
    return "its metadata point at the same bytes many times" if directory.bytes > 2 * len(exif) + 1000 else ""


# -- JPEG --------------------------------------------------------------------------------------------------------------
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


# -- TIFF --------------------------------------------------------------------------------------------------------------
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS, PLANAR = 256, 257, 258, 259, 262, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT = 322, 323
STRIPS, TILES = (273, 279), (324, 325)  # offsets, lengths
RAW, OLD_JPEG, NEW_JPEG, ZSTD = 1, 6, 7, 50000
KNOWN = {RAW: 1, 2: 8, 3: 10, 4: 10, 5: 6, OLD_JPEG: 8, NEW_JPEG: 8, 8: 5, 32773: 2, 32946: 5, ZSTD: 5}
"""Compressions of known cost: nanoseconds per sample. Not LZMA, whose header can make it allocate 4 GB, nor WebP."""

LIBJPEG = 100_000_000  # bytes of memory that libtiff allows it
WINDOW = 128 << 20  # bytes of memory of a Zstandard decoder
PARTS_OF_FILE = 4  # the largest ratio of the parts' bytes to the file's: some writers list an empty tile repeatedly
CMYK, YCBCR, LAB = 5, 6, 8
PROFILE_TAG = 34675
EXIF_TAG, GPS_TAG, INTEROPERABILITY = 34665, 34853, 40965  # separate directories, which Pillow reads as well
NONE = 0xFFFFFFFF


def tiff_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many parts, overlapping parts, or a compression whose cost is not known."""
    if data.startswith(b"MM\0\x2b"):
        raise UserError("a form of TIFF that libraries read differently")
    ifd = Directory(data, steps)
    width, height = ifd.value(WIDTH), ifd.value(HEIGHT)
    compression = ifd.value(COMPRESSION, RAW)
    if compression not in KNOWN:
        raise UserError(f"TIFF of compression {compression}, whose cost is not known")
    ifds = [ifd, *(Directory(data, steps, at=ifd.value(tag)) for tag in (EXIF_TAG, GPS_TAG) if tag in ifd.fields)]
    ifds += [Directory(data, steps, at=d.value(INTEROPERABILITY)) for d in ifds if INTEROPERABILITY in d.fields]
    if sum(d.bytes for d in ifds) > 4 * len(data) + 1000:
        raise UserError("its metadata point at the same bytes many times")
    samples = max(ifd.value(SAMPLES, 1), len(ifd.values(BITS)), 3 if ifd.value(PHOTOMETRIC) == YCBCR else 1)
    if samples > 16:
        raise UserError(f"{samples} samples a pixel")
    depth = max(8, ifd.value(BITS, 1)) / 8
    tiled = TILES[0] in ifd.fields or TILE_WIDTH in ifd.fields
    if tiled and STRIPS[0] in ifd.fields:
        raise UserError("both strips and tiles: decoders differ")
    part = (ifd.value(TILE_WIDTH), ifd.value(TILE_HEIGHT)) if tiled else (width, min(ifd.value(ROWS, NONE), height))
    across, down = (-(-side // max(1, step)) for side, step in zip((width, height), part, strict=True))
    parts = ifd.values((TILES if tiled else STRIPS)[0])
    lengths = ifd.values((TILES if tiled else STRIPS)[1])
    decoded = prod(part) * across * down  # pixels
    if compression == RAW:  # Pillow's own reader, which decodes each part in the list
        decoded = prod(part) * len(parts)
    if sum(lengths) > PARTS_OF_FILE * len(data) + 100_000 and compression != RAW:
        raise UserError("its parts overlap")
    buffers = 0
    if compression != RAW:
        buffers = int(prod(part) * (samples * depth + (4 if ifd.value(PHOTOMETRIC) == YCBCR else 0)))
        buffers += WINDOW if compression == ZSTD else 0
    scans = most_scans(data, parts, lengths) if compression in (OLD_JPEG, NEW_JPEG) else 1
    pixels = width * height
    memory = len(data) + SLACK + pixels * RGB_BYTES + buffers + (LIBJPEG if scans > 1 else 0)
    nanoseconds = decoded * KNOWN[compression] * samples * depth * scans
    slow = ifd.value(PHOTOMETRIC) == LAB or (ifd.value(PHOTOMETRIC) == CMYK and PROFILE_TAG in ifd.fields)
    nanoseconds += pixels * (PROFILE_NANOSECONDS if slow else 14)
    nanoseconds += len(data) * (2 if compression == RAW else 10)
    entries = sum(d.entries for d in ifds)
    return Cost("TIFF", width, height, memory, nanoseconds / 1e9 + 4e-6 * (len(parts) + 2 * entries))


def most_scans(data: bytes, parts: list[int], lengths: list[int]) -> int:
    """The largest number of scans in one part with JPEG compression; at most MAX_SCANS are decoded."""
    if len(lengths) != len(parts) or not all(lengths):  # libtiff guesses
        return min(MAX_SCANS, data.count(b"\xff\xda"))
    ends = (data.count(b"\xff\xda", offset, offset + length) for offset, length in zip(parts, lengths, strict=True))
    return min(MAX_SCANS, max(1, max(ends, default=1)))
