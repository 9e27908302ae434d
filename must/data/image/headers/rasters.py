"""PNG, WebP, GIF, BMP, icons, TGA and PPM."""

import struct
from math import ceil, log

from must.base.errors import UserError
from must.data.image.headers.base import A_SEGMENT, Cost, Steps, costs, number

PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
STEP = 4.6e-7  # seconds a byte or sample in decoders of Pillow's that are Python
PACKED, UNPACKED = (b"iCCP", b"zTXt", b"iTXt"), 1_000_000  # chunks that Pillow expands, each to so many bytes at most
MAX_BEFORE = 1_000_000  # bytes of a GIF before its picture: Pillow joins comments 255 bytes at a time
MAX_ICONS = 1000


def png_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: too many chunks, or two headers."""
    place, heads, reading = len(PNG), [], 0.0
    while place < len(data):
        steps.take()
        name, length = data[place + 4 : place + 8], number(data, place, 4)
        if name == b"IHDR":
            heads.append(place + 8)
        elif name in PACKED:
            reading += 1.2e-9 * min(UNPACKED, 1032 * length)
        reading += A_SEGMENT
        place += 12 + length
    if len(heads) != 1:
        raise UserError("no header" if not heads else "two headers: decoders differ in their use")
    size, depth = (number(data, heads[0], 4), number(data, heads[0] + 4, 4)), number(data, heads[0] + 8, 1)
    samples = CHANNELS.get(number(data, heads[0] + 9, 1), 4) * max(1, depth / 8)
    found = costs("PNG", size, data, nanoseconds=(5 + 4 * samples, 5))
    return found._replace(seconds=found.seconds + reading)


def webp_cost(data: bytes) -> Cost:
    """The decoder is that of animations: two canvases, the picture as bytes, and Pillow's own."""
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
    return costs("WEBP", size, data, held=13, nanoseconds=(25, 20))


def gif_cost(data: bytes, steps: Steps) -> Cost:
    """The screen, or the first picture where that is larger. Raises ValueError: too much comes before it."""
    width, height = struct.unpack_from("<HH", data.ljust(13, b"\0"), 6)
    flags = number(data, 10, 1)
    place = 13 + ((2 << (flags & 7)) * 3 if flags & 0x80 else 0)
    begun = place
    while data[place : place + 1] not in (b",", b""):
        steps.take()
        if data[place : place + 1] != b"!":
            place += 1  # Pillow looks at the next byte
        else:
            place += 2
            while size := number(data, place, 1):
                steps.take()
                place += 1 + size
            place += 1
        if place - begun > MAX_BEFORE:
            raise UserError(f"more than {MAX_BEFORE} bytes before its picture")
    left, top, wide, high = struct.unpack_from("<4H", data[place + 1 : place + 9].ljust(8, b"\0"))
    return costs("GIF", (max(width, left + wide), max(height, top + high)), data, nanoseconds=(12, 10))


def bmp_cost(data: bytes, start: int = 14, kind: str = "BMP") -> Cost:
    """With a header of the bitmap at `start`. Pillow unpacks runs in Python."""
    size = number(data, start, 4, "little")
    if size == 12:
        width, height, bits, compression = (*struct.unpack("<HHxxH", data[start + 4 : start + 12].ljust(8, b"\0")), 0)
    else:
        head = data[start + 4 : start + 20].ljust(16, b"\0")
        width, height, bits, compression = struct.unpack("<iixxHI", head)
    found = costs(kind, (abs(width), abs(height)), data, nanoseconds=(5 + bits / 8, 2))
    if compression in (1, 2):
        packed = STEP * (len(data) / 2 + found.pixels * (0.7 if compression == 2 else 0.3))
        return found._replace(memory=found.memory + 2 * found.pixels, seconds=found.seconds + packed)
    return found


def ico_cost(data: bytes, steps: Steps) -> Cost:
    """Of the picture that Pillow takes: of the largest as the list has it, the one of fewest colours.

    Raises ValueError: too many pictures, or more than are there.
    """
    count = number(data, 4, 2, "little")
    if count > MAX_ICONS:
        raise UserError(f"more than {MAX_ICONS} pictures in an icon")
    if 6 + 16 * count > len(data):
        raise UserError("an icon's list of pictures is cut off")
    entries = []
    for place in range(6, 6 + 16 * count, 16):
        entry = data[place : place + 16]
        colours, bits = entry[2], number(entry, 6, 2, "little")
        deep = bits or (colours != 0 and ceil(log(colours, 2))) or 256
        entries.append((-(entry[0] or 256) * (entry[1] or 256), deep, number(entry, 12, 4, "little")))
    chosen = min(entries, default=(0, 0, 0))
    start = next((start for *rank, start in entries if tuple(rank) == chosen[:2]), 0)
    inside = data[start:] if data[start : start + 8] == PNG else data[start : start + 40]
    if inside.startswith(PNG):
        found = png_cost(inside, steps)
    else:
        found = bmp_cost(inside, 0)
        found = found._replace(height=-(-found.height // 2))
    return Cost("ICO", found.width, found.height, len(data) + 24 * found.pixels, found.seconds + 60e-9 * found.pixels)


def tga_cost(data: bytes) -> Cost:
    """Nothing marks a TGA: its header has to make sense. Raises ValueError: it does not."""
    head = data[:18].ljust(18, b"\0")
    if head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or head[16] not in (1, 8, 16, 24, 32):
        raise UserError("not an image of a known format")
    return costs("TGA", struct.unpack("<HH", head[12:16]), data, nanoseconds=(10, 2))


BLOCK = 1 << 20  # bytes of a plain PPM that Pillow reads at a time
LONGEST_HEAD = 1000  # bytes of a PPM, whose header Pillow reads one at a time


def ppm_cost(data: bytes) -> Cost:
    """Raises ValueError: a long header."""
    words = data[:LONGEST_HEAD]
    while (note := words.find(b"#")) >= 0:
        end = min((at for sign in (b"\n", b"\r") if (at := words.find(sign, note)) >= 0), default=-1)
        words = words[:note] + (words[end + 1 :] if end >= 0 else b"")
    magic, *numbers = [*words.split(None, 4), b"", b"", b"", b""][:4]
    if not all(one.isdigit() and len(one) <= 10 for one in numbers[:2]):
        raise UserError(f"no size within the first {LONGEST_HEAD} bytes of a PPM")
    size = int(numbers[0]), int(numbers[1])
    bands = {b"P3": 3, b"P6": 3}.get(magic, 1 if len(magic) == 2 else 4)
    found = costs("PPM", size, data, nanoseconds=(5, 2))
    samples = found.pixels * bands
    if magic in (b"P1", b"P2", b"P3"):
        notes = data.count(b"#") * min(len(data), BLOCK) / 2e9  # what follows a comment is copied
        return found._replace(
            memory=found.memory + 6 * samples + 70 * BLOCK,
            seconds=found.seconds + STEP * (samples + len(data) / 20) + notes,
        )
    plain = magic in (b"P4", b"Pf") or numbers[2] == b"255" or (magic == b"P5" and numbers[2] == b"65535")
    if not plain:
        return found._replace(memory=found.memory + 8 * samples, seconds=found.seconds + STEP * samples)
    return found
