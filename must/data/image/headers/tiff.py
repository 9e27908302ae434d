"""TIFF: the memory is that of its strips or tiles, whatever the picture's size is; so is the work."""

from math import prod

from must.base.errors import UserError
from must.data.image.headers.base import FINAL, PROFILED, SLACK, Cost, Steps
from must.data.image.headers.directory import Directory
from must.data.image.headers.jpeg import MAX_SCANS

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS, PLANAR = 256, 257, 258, 259, 262, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT = 322, 323
STRIPS, TILES = (273, 279), (324, 325)  # where they are, how long
RAW, OLD_JPEG, NEW_JPEG, ZSTD = 1, 6, 7, 50000
KNOWN = {RAW: 1, 2: 8, 3: 10, 4: 10, 5: 6, OLD_JPEG: 8, NEW_JPEG: 8, 8: 5, 32773: 2, 32946: 5, ZSTD: 5}
"""Compressions whose cost is known: nanoseconds a sample. Not LZMA, whose header alone makes it take 4 GB, nor WebP."""

LIBJPEG = 100_000_000  # bytes that libtiff lets it take
WINDOW = 128 << 20  # bytes, of a decoder of Zstandard
PARTS_OF_FILE = 4  # how often a file's parts may cover its bytes: some writers list an empty tile again
CMYK, YCBCR, LAB = 5, 6, 8
PROFILE = 34675
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965  # directories of their own, which Pillow reads as well
NONE = 0xFFFFFFFF


def tiff_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many parts, parts upon each other, or a compression whose cost is not known."""
    if data.startswith(b"MM\0\x2b"):
        raise UserError("a form of TIFF that libraries read differently")
    found = Directory(data, steps)
    width, height = found.value(WIDTH), found.value(HEIGHT)
    compression = found.value(COMPRESSION, RAW)
    if compression not in KNOWN:
        raise UserError(f"TIFF of compression {compression}, whose cost is not known")
    directories = [found, *(Directory(data, steps, at=found.value(tag)) for tag in (EXIF, GPS) if tag in found.fields)]
    directories += [
        Directory(data, steps, at=one.value(INTEROPERABILITY)) for one in directories if INTEROPERABILITY in one.fields
    ]
    if sum(one.bytes for one in directories) > 4 * len(data) + 1000:
        raise UserError("its metadata point at the same bytes many times")
    samples = max(found.value(SAMPLES, 1), len(found.values(BITS)), 3 if found.value(PHOTOMETRIC) == YCBCR else 1)
    if samples > 16:
        raise UserError(f"{samples} samples a pixel")
    depth = max(8, found.value(BITS, 1)) / 8
    tiled = TILES[0] in found.fields or TILE_WIDTH in found.fields
    if tiled and STRIPS[0] in found.fields:
        raise UserError("both strips and tiles: decoders differ")
    if tiled:
        part = found.value(TILE_WIDTH), found.value(TILE_HEIGHT)
    else:
        part = width, min(found.value(ROWS, NONE), height)
    across, down = (-(-side // max(1, step)) for side, step in zip((width, height), part, strict=True))
    parts = found.values((TILES if tiled else STRIPS)[0])
    lengths = found.values((TILES if tiled else STRIPS)[1])
    drawn = prod(part) * across * down  # pixels that are decoded
    if compression == RAW:  # Pillow's own reader, which draws whatever is listed
        drawn = prod(part) * len(parts)
    if sum(lengths) > PARTS_OF_FILE * len(data) + 100_000 and compression != RAW:
        raise UserError("its parts overlap")
    buffers = 0
    if compression != RAW:
        buffers = int(prod(part) * (samples * depth + (4 if found.value(PHOTOMETRIC) == YCBCR else 0)))
        buffers += WINDOW if compression == ZSTD else 0
    scans = most_scans(data, parts, lengths) if compression in (OLD_JPEG, NEW_JPEG) else 1
    pixels = width * height
    memory = len(data) + SLACK + pixels * FINAL + buffers + (LIBJPEG if scans > 1 else 0)
    work = drawn * KNOWN[compression] * samples * depth * scans
    slow = found.value(PHOTOMETRIC) == LAB or (found.value(PHOTOMETRIC) == CMYK and PROFILE in found.fields)
    work += pixels * (PROFILED if slow else 14)
    work += len(data) * (2 if compression == RAW else 10)
    entries = sum(one.entries for one in directories)
    return Cost("TIFF", width, height, memory, work / 1e9 + 4e-6 * (len(parts) + 2 * entries))


def most_scans(data: bytes, parts: list[int], lengths: list[int]) -> int:
    """Of a JPEG inside: of all its parts, the one with most; at most so many are decoded."""
    if len(lengths) != len(parts) or not all(lengths):  # libtiff guesses
        return min(MAX_SCANS, data.count(b"\xff\xda"))
    ends = (data.count(b"\xff\xda", place, place + length) for place, length in zip(parts, lengths, strict=True))
    return min(MAX_SCANS, max(1, max(ends, default=1)))
