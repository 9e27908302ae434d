"""TIFF: the memory and work depend on the strips or tiles as well as on the size of the image."""

from math import prod

from must.base.errors import UserError
from must.data.image.headers.base import PROFILE_NANOSECONDS, RGB_BYTES, SLACK, Cost, Steps
from must.data.image.headers.directory import Directory
from must.data.image.headers.jpeg import MAX_SCANS

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
PROFILE = 34675
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965  # separate directories, which Pillow reads as well
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
    ifds = [ifd, *(Directory(data, steps, at=ifd.value(tag)) for tag in (EXIF, GPS) if tag in ifd.fields)]
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
    slow = ifd.value(PHOTOMETRIC) == LAB or (ifd.value(PHOTOMETRIC) == CMYK and PROFILE in ifd.fields)
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
