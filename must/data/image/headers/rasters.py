"""PNG, WebP, GIF, BMP, icons, TGA and PPM."""

import struct
from math import ceil, log

from must.base.errors import UserError
from must.data.image.headers.base import SEGMENT_SECONDS, Cost, Steps, costs, number

PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PYTHON_SECONDS = 4.6e-7  # per byte or sample in those decoders of Pillow that are written in Python
COMPRESSED_CHUNKS, MAX_EXPANDED = (b"iCCP", b"zTXt", b"iTXt"), 1_000_000  # the most bytes that Pillow makes of one
MAX_BEFORE = 1_000_000  # bytes of a GIF before its image: Pillow joins comments 255 bytes at a time
MAX_ICONS = 1000


def png_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many chunks, or two headers."""
    offset, heads, reading = len(PNG), [], 0.0
    while offset < len(data):
        steps.take()
        name, length = data[offset + 4 : offset + 8], number(data, offset, 4)
        if name == b"IHDR":
            heads.append(offset + 8)
        elif name in COMPRESSED_CHUNKS:
            reading += 1.2e-9 * min(MAX_EXPANDED, 1032 * length)
        reading += SEGMENT_SECONDS
        offset += 12 + length
    if len(heads) != 1:
        raise UserError("no header" if not heads else "two headers: decoders differ in their use")
    size, depth = (number(data, heads[0], 4), number(data, heads[0] + 4, 4)), number(data, heads[0] + 8, 1)
    samples = CHANNELS.get(number(data, heads[0] + 9, 1), 4) * max(1, depth / 8)
    estimate = costs("PNG", size, data, nanoseconds=(5 + 4 * samples, 5))
    return estimate._replace(seconds=estimate.seconds + reading)


def webp_cost(data: bytes) -> Cost:
    """Pillow decodes by way of the animation decoder: two canvases, the image as bytes, and Pillow's own copy."""
    head = data[12:16]
    if head == b"VP8X":
        size = (number(data, 24, 3, "little") + 1, number(data, 27, 3, "little") + 1)
    elif head == b"VP8 ":
        size = (number(data, 26, 2, "little") & 0x3FFF, number(data, 28, 2, "little") & 0x3FFF)
    elif head == b"VP8L":
        bits = number(data, 21, 4, "little")
        size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    else:
        raise UserError("not an image of a known format")
    return costs("WEBP", size, data, decoder_bytes=13, nanoseconds=(25, 20))


def gif_cost(data: bytes, steps: Steps) -> Cost:
    """The size is the screen's, or the first image's if that is larger. Raises ValueError: too many bytes before it."""
    width, height = struct.unpack_from("<HH", data.ljust(13, b"\0"), 6)
    flags = number(data, 10, 1)
    offset = 13 + ((2 << (flags & 7)) * 3 if flags & 0x80 else 0)
    start = offset
    while data[offset : offset + 1] not in (b",", b""):
        steps.take()
        if data[offset : offset + 1] != b"!":
            offset += 1  # Pillow reads the next byte
        else:
            offset += 2
            while size := number(data, offset, 1):
                steps.take()
                offset += 1 + size
            offset += 1
        if offset - start > MAX_BEFORE:
            raise UserError(f"more than {MAX_BEFORE} bytes before its picture")
    x, y, frame_width, frame_height = struct.unpack_from("<4H", data[offset + 1 : offset + 9].ljust(8, b"\0"))
    return costs("GIF", (max(width, x + frame_width), max(height, y + frame_height)), data, nanoseconds=(12, 10))


def bmp_cost(data: bytes, start: int = 14, kind: str = "BMP") -> Cost:
    """`start`: offset of the bitmap's header. Pillow decodes run lengths in Python."""
    size = number(data, start, 4, "little")
    if size == 12:
        width, height, bits, compression = (*struct.unpack("<HHxxH", data[start + 4 : start + 12].ljust(8, b"\0")), 0)
    else:
        head = data[start + 4 : start + 20].ljust(16, b"\0")
        width, height, bits, compression = struct.unpack("<iixxHI", head)
    estimate = costs(kind, (abs(width), abs(height)), data, nanoseconds=(5 + bits / 8, 2))
    if compression in (1, 2):
        packed = PYTHON_SECONDS * (len(data) / 2 + estimate.pixels * (0.7 if compression == 2 else 0.3))
        return estimate._replace(memory=estimate.memory + 2 * estimate.pixels, seconds=estimate.seconds + packed)
    return estimate


def ico_cost(data: bytes, steps: Steps) -> Cost:
    """The cost of the image that Pillow chooses: the largest by the list, and of several the one of fewest colours.

    Raises ValueError: too many images, or the list is cut off.
    """
    count = number(data, 4, 2, "little")
    if count > MAX_ICONS:
        raise UserError(f"more than {MAX_ICONS} pictures in an icon")
    if 6 + 16 * count > len(data):
        raise UserError("an icon's list of pictures is cut off")
    entries = []
    for offset in range(6, 6 + 16 * count, 16):
        entry = data[offset : offset + 16]
        colours, bits = entry[2], number(entry, 6, 2, "little")
        deep = bits or (colours != 0 and ceil(log(colours, 2))) or 256
        entries.append((-(entry[0] or 256) * (entry[1] or 256), deep, number(entry, 12, 4, "little")))
    chosen = min(entries, default=(0, 0, 0))
    start = next((start for *rank, start in entries if tuple(rank) == chosen[:2]), 0)
    if data[start : start + 8] == PNG:
        image = png_cost(data[start:], steps)
    else:
        image = bmp_cost(data[start : start + 40], 0)
        image = image._replace(height=-(-image.height // 2))
    return Cost("ICO", image.width, image.height, len(data) + 24 * image.pixels, image.seconds + 60e-9 * image.pixels)


def tga_cost(data: bytes) -> Cost:
    """A TGA has no signature: its header has to be plausible. Raises ValueError: it is not."""
    head = data[:18].ljust(18, b"\0")
    if head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or head[16] not in (1, 8, 16, 24, 32):
        raise UserError("not an image of a known format")
    return costs("TGA", struct.unpack("<HH", head[12:16]), data, nanoseconds=(10, 2))


BLOCK = 1 << 20  # bytes of a plain PPM that Pillow reads at a time
LONGEST_HEAD = 1000  # bytes of a PPM's header, which Pillow reads one byte at a time


def ppm_cost(data: bytes) -> Cost:
    """Raises ValueError: a long header."""
    words = data[:LONGEST_HEAD]
    while (comment := words.find(b"#")) >= 0:
        end = min((at for sign in (b"\n", b"\r") if (at := words.find(sign, comment)) >= 0), default=-1)
        words = words[:comment] + (words[end + 1 :] if end >= 0 else b"")
    magic, *numbers = [*words.split(None, 4), b"", b"", b"", b""][:4]
    if not all(digits.isdigit() and len(digits) <= 10 for digits in numbers[:2]):
        raise UserError(f"no size within the first {LONGEST_HEAD} bytes of a PPM")
    size = int(numbers[0]), int(numbers[1])
    bands = {b"P3": 3, b"P6": 3}.get(magic, 1 if len(magic) == 2 else 4)
    plain = costs("PPM", size, data, nanoseconds=(5, 2))
    samples = plain.pixels * bands
    if magic in (b"P1", b"P2", b"P3"):
        comments = data.count(b"#") * min(len(data), BLOCK) / 2e9  # the bytes after a comment are copied
        return plain._replace(
            memory=plain.memory + 6 * samples + 70 * BLOCK,
            seconds=plain.seconds + PYTHON_SECONDS * (samples + len(data) / 20) + comments,
        )
    fast = magic in (b"P4", b"Pf") or numbers[2] == b"255" or (magic == b"P5" and numbers[2] == b"65535")
    if not fast:
        return plain._replace(memory=plain.memory + 8 * samples, seconds=plain.seconds + PYTHON_SECONDS * samples)
    return plain
