"""JPEG 2000 and AVIF: boxes, and the codestreams in them, which have sizes in their own headers."""

from collections.abc import Iterator
from math import prod

from must.base.errors import UserError
from must.data.image.headers.base import Bits, Cost, Steps, costs, number

CODESTREAM = b"\xff\x4f\xff\x51"
JP2 = b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a"
SIZ, COD, COC, POC, SOT, SOD, END = 0xFF51, 0xFF52, 0xFF53, 0xFF5F, 0xFF90, 0xFF93, 0xFFD9
TRANSFORMS = (0xFF74, 0xFF75, 0xFF77)  # custom ones, which OpenJPEG copies for every tile
CODE_BLOCK, PRECINCT, TILE = 420, 600, 14_000  # bytes of memory that OpenJPEG needs for each
BYTE_SECONDS, TILE_SECONDS = 150e-9, 12e-6  # per byte of the codestream, per tile
QCD, QCC, ROI = 0xFF5C, 0xFF5D, 0xFF5E  # how samples are quantized, and a region of interest
SAMPLE_NANOSECONDS, PLANE_NANOSECONDS = 25, 5.5  # per sample, and per bit plane of it, also of an empty one
MAX_PLANES = 31  # the most that OpenJPEG accepts
BRANDS = (b"avif", b"mif1")
ANIMATED = "an animated AVIF is not accepted"
SEQUENCE_HEADER, FRAMES = 1, (3, 6)  # types of AV1 units
SEQUENCE_STEPS = 100  # for reading the header of a sequence
FRAME_SECONDS = 52e-9  # per pixel, shown or not
MAX_ITEMS = 1000
Box = tuple[bytes, int, int]


def boxes(data: bytes, steps: Steps, start: int, end: int) -> Iterator[Box]:
    """(type, start, end of the content) of the boxes from `start` to `end`. Raises ValueError: too many."""
    for _ in range(MAX_ITEMS):
        if start + 8 > end:
            return
        steps.take()
        size, kind, content = number(data, start, 4), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = number(data, start + 8, 8), start + 16
        last = end if size == 0 else start + size
        if last < content:
            return
        yield kind, content, min(last, end)
        start = last
    raise UserError(f"more than {MAX_ITEMS} boxes")


# -- JPEG 2000 ---------------------------------------------------------------------------------------------------------
def jpeg2000_cost(data: bytes, steps: Steps) -> Cost:
    """Raises ValueError: no codestream, or its parts are coded in different ways."""
    sizes, streams = [], []
    if data.startswith(CODESTREAM):
        streams.append((0, len(data)))
    else:
        for kind, start, end in boxes(data, steps, 0, len(data)):
            if kind == b"jp2h":
                inside = list(boxes(data, steps, start, end))
                sizes += [(number(data, at + 4, 4), number(data, at, 4)) for name, at, _ in inside if name == b"ihdr"]
            elif kind == b"jp2c":
                streams.append((start, end))
    if len(streams) != 1 or len(sizes) > 1:
        raise UserError("no picture, or several" if len(streams) != 1 else "two headers: decoders differ in their use")
    stream = codestream(data, steps, *streams[0])
    size = max([stream[0], *sizes], key=prod)
    estimate = costs("JPEG2000", size, data)
    return estimate._replace(memory=estimate.memory + stream[1], seconds=estimate.seconds + stream[2])


def codestream(data: bytes, steps: Steps, start: int, end: int) -> tuple[tuple[int, int], int, float]:
    """((width, height), bytes of memory for a tile, seconds). Raises ValueError: as `jpeg2000_cost`."""
    coding, size, offset, planes = None, None, start + 2, 0
    while offset + 4 <= end:
        marker, length = number(data, offset, 2), number(data, offset + 2, 2)
        if marker in (SOT, SOD, END):
            break
        if marker == SIZ and size is None:
            size = offset + 4
        elif marker == COD and coding is None:
            coding = offset + 4
        elif marker in (SIZ, COD, COC, POC):
            raise UserError("components coded in different ways, whose cost is not known")
        elif marker in TRANSFORMS:
            raise UserError("a custom transform, whose cost is not known")
        planes = max(planes, bit_planes(data, steps, offset, end))
        offset += 2 + max(2, length)
    if size is None or coding is None:
        raise UserError("no header of its codestream")
    planes = max(planes, tile_planes(data, steps, offset, end))
    end_x, end_y, x, y, tile_width, tile_height, tile_x, tile_y = (number(data, size + 2 + 4 * n, 4) for n in range(8))
    components = number(data, size + 34, 2)
    if not 1 <= components <= 4:
        raise UserError(f"{components} components")
    if not (tile_x <= x < min(end_x, tile_x + tile_width) and tile_y <= y < min(end_y, tile_y + tile_height)):
        raise UserError("no pixels, or none in its first tile")
    width, height = end_x - x, end_y - y
    tile = min(width, tile_width) * min(height, tile_height)
    tiles = -(-(end_x - tile_x) // tile_width) * -(-(end_y - tile_y) // tile_height)
    if tiles > 65535:
        raise UserError("more than 65535 tiles")
    levels = min(32, number(data, coding + 5, 1))
    block = 1 << min(12, number(data, coding + 6, 1) + number(data, coding + 7, 1) + 4)
    custom = number(data, coding, 1) & 1  # whether a precinct's size is given per resolution, from the smallest
    blocks = precincts = 0
    for level in range(levels + 1):
        area = -(-tile >> 2 * (levels - level))
        sides = number(data, coding + 10 + level, 1) if custom else 0xFF
        precinct = 1 << (sides & 15) + (sides >> 4)
        precincts += -(-area // precinct) + 3
        blocks += -(-area // min(block, max(1, precinct // 4 if level else precinct))) + 3
    layers = number(data, coding + 2, 2)
    buffers = components * (blocks * CODE_BLOCK + precincts * PRECINCT)
    memory = tile * components * 5 + buffers + TILE * tiles
    work = width * height * components * (SAMPLE_NANOSECONDS + PLANE_NANOSECONDS * min(planes, MAX_PLANES))
    work += buffers * max(1, tiles * tile // (width * height))
    work += 30 * layers * precincts * components
    return (width, height), memory, work / 1e9 + BYTE_SECONDS * (end - start) + TILE_SECONDS * tiles


def tile_planes(data: bytes, steps: Steps, offset: int, end: int) -> int:
    """The largest number of bit planes in the tiles' headers. Raises ValueError: one changes how its tile is coded."""
    planes = 0
    while offset + 12 <= end and number(data, offset, 2) == SOT:
        length, at = number(data, offset + 6, 4), offset + 12
        last = min(end, offset + length) if length else end
        while at + 2 <= last and (marker := number(data, at, 2)) != SOD:
            if marker in (COD, COC, POC):
                raise UserError("tiles coded in different ways, whose cost is not known")
            planes = max(planes, bit_planes(data, steps, at, last))
            at += 2 + max(2, number(data, at + 2, 2))
        if at + 2 > last:
            raise UserError("a tile whose header has no end")
        steps.take()
        if length == 0:
            break
        offset += max(12, length)
    return planes


def bit_planes(data: bytes, steps: Steps, offset: int, end: int) -> int:
    """The most bit planes of a sample by the marker segment at `offset`, or 0. A plane is coded in up to 3 passes."""
    steps.take()
    marker = number(data, offset, 2)
    if marker == ROI:
        return MAX_PLANES
    if marker not in (QCD, QCC):
        return 0
    at, last = offset + 4 + (marker == QCC), min(end, offset + 2 + number(data, offset + 2, 2), offset + 300)
    style, guard = number(data, at, 1) & 31, number(data, at, 1) >> 5
    wide = 1 if style == 0 else 2
    return guard + max((byte >> 3 for byte in data[at + 1 : last : wide]), default=MAX_PLANES)


# -- AVIF --------------------------------------------------------------------------------------------------------------
def avif_cost(data: bytes, steps: Steps) -> Cost:
    """By the largest size in the boxes and the AV1 data of all items. Raises ValueError: a sequence, or no size."""
    sizes, kinds, largest, frames, described = [], [], (0, 0), 0, False
    for kind, start, end in boxes(data, steps, 0, len(data)):
        if kind == b"moov":
            raise UserError(ANIMATED)
        if kind != b"meta":
            continue
        if described:
            raise UserError("described twice")
        described = True
        inside = {name: (at, last) for name, at, last in boxes(data, steps, start + 4, end)}
        for name, at, last in boxes(data, steps, *inside.get(b"iprp", (0, 0))):
            if name == b"ipco":
                properties = list(boxes(data, steps, at, last))
                kinds += [name for name, *_ in properties]
                sizes += [
                    (number(data, at + 4, 4), number(data, at + 8, 4)) for name, at, _ in properties if name == b"ispe"
                ]
        pieces = list(extents(data, steps, inside.get(b"iloc", (0, 0)), inside.get(b"idat", (0, 0))[0]))
        if sum(max(0, last - at) for _, at, last in pieces) > 4 * len(data):
            raise UserError("its items overlap")
        for _, at, last in pieces:
            for unit, begin, stop in units(data, steps, at, last):
                frames += unit in FRAMES
                if unit == SEQUENCE_HEADER:
                    steps.take(SEQUENCE_STEPS)
                    largest = max(largest, frame_size(data[begin : min(stop, begin + 1000)]), key=prod)
    if not sizes and not frames:
        raise UserError("no size")
    planes = 1 + kinds.count(b"auxC")
    size = max([largest, *sizes], key=prod)
    # 16 bits per sample of 4:4:4, twice: decoded, and scaled if the two sizes differ; then RGBA, and as bytes
    estimate = costs("AVIF", size, data, decoder_bytes=16 + 4 * planes, nanoseconds=(40, 20))
    seconds = max(estimate.seconds, FRAME_SECONDS * frames * prod(largest))
    return estimate._replace(memory=estimate.memory + 30_000_000, seconds=seconds)


def extents(data: bytes, steps: Steps, box: tuple[int, int], idat: int) -> Iterator[tuple[int, int, int]]:
    """(item, start, end) of the items' pieces in the file. Raises ValueError: too many, or the table is cut off."""
    start, end = box
    if not end:
        return
    version, sizes = number(data, start, 1), number(data, start + 4, 2)
    wide = [sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0]  # offset, length, base, index
    offset = start + 6
    count = number(data, offset, 4 if version > 1 else 2)
    offset += 4 if version > 1 else 2
    if count > MAX_ITEMS:
        raise UserError(f"more than {MAX_ITEMS} items")
    for _ in range(count):
        item, offset = number(data, offset, 4 if version > 1 else 2), offset + (4 if version > 1 else 2)
        method = number(data, offset, 2) & 15 if version else 0
        offset += 4 if version else 2
        base = number(data, offset, wide[2]) + (idat if method == 1 else 0)
        pieces = number(data, offset + wide[2], 2)
        offset += wide[2] + 2
        if pieces > MAX_ITEMS:
            raise UserError(f"more than {MAX_ITEMS} pieces")
        if pieces > 1 and not wide[0] + wide[1] + wide[3]:
            raise UserError("an item of the same piece many times")
        if offset + pieces * (wide[0] + wide[1] + wide[3]) > end:
            raise UserError("a table of items that is cut off")
        steps.take(1 + pieces)
        for _ in range(pieces):
            at = base + number(data, offset + wide[3], wide[0])
            length = number(data, offset + wide[3] + wide[0], wide[1])
            offset += wide[3] + wide[0] + wide[1]
            yield item, at, min(at + length, len(data)) if length else len(data)


def units(data: bytes, steps: Steps, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end of the content) of the AV1 units from `offset` to `end`."""
    while offset < end:
        steps.take()
        head, offset = data[offset], offset + 1 + (data[offset] >> 2 & 1)
        if head & 2:
            length, shift = 0, 0
            while offset < end and shift < 56:
                byte, offset = data[offset], offset + 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        else:
            length = end - offset
        yield head >> 3 & 15, offset, offset + length
        offset += length


def frame_size(data: bytes) -> tuple[int, int]:
    """max_frame_width and height of a sequence header; the largest possible size for an unusual kind of header."""
    read = Bits(data)
    read(3)  # profile
    read(1)  # still
    if read(1):  # reduced: one operating point
        read(5)
    else:
        if read(1):  # timing
            return 65536, 65536
        delay = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if delay and read(1):
                read(4)
    wide, high = read(4) + 1, read(4) + 1
    return read(wide) + 1, read(high) + 1
