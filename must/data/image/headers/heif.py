"""HEIC: boxes as in AVIF, and HEVC data in them, which has its own sizes. Decoded if pillow-heif is installed."""

import importlib.util
from collections.abc import Iterator
from math import prod

from must.base.errors import UserError
from must.data.image.headers.base import Bits, Cost, Steps, costs, number
from must.data.image.headers.boxes import MAX_ITEMS, SEQUENCE_STEPS, boxes, extents

PLUGIN = "pillow_heif"
BRANDS = (b"heic", b"heix")
ANIMATED = "an animated HEIC is not accepted"
KINDS = (b"hvc1", b"grid", b"tmap", b"Exif", b"mime", b"uri ")  # of items: images, a grid of tiles, metadata
PARAMETERS, PICTURES = 33, 32  # types of HEVC units: a sequence parameter set; lower ones are slices
DECODER_BYTES, DECODER_NANOSECONDS = 8, (70, 230)  # per pixel; per pixel and per byte, of libde265
TILE_BYTES = 12  # per pixel of the tile that is being decoded
Item = tuple[int, int, int]  # its number, start and end of a piece of it


def can_read() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec(PLUGIN) is not None


def is_heif(data: bytes) -> bool:
    """Whether the brands in the first box are those of HEIC."""
    brand, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 1000)]
    return data[4:8] == b"ftyp" and (brand in BRANDS or (brand == b"mif1" and any(other in others for other in BRANDS)))


def heif_cost(data: bytes, steps: Steps) -> Cost:
    """By the largest size in boxes, grids and HEVC, and all tiles. Raises ValueError: unknown items."""
    meta: dict[bytes, tuple[int, int]] = {}
    for kind, start, end in boxes(data, steps, 0, len(data)):
        if kind == b"moov":
            raise UserError(ANIMATED)
        if kind == b"meta":
            if meta:
                raise UserError("described twice")
            meta = {name: (at, last) for name, at, last in boxes(data, steps, start + 4, end)}
    kinds = dict(items(data, steps, *meta.get(b"iinf", (0, 0))))
    sizes, tile, lengths, layers = [(0, 0)], (0, 0), 4, 1
    for name, at, last in boxes(data, steps, *meta.get(b"iprp", (0, 0))):
        for label, begin, stop in boxes(data, steps, at, last) if name == b"ipco" else ():
            layers += label == b"auxC"
            if label == b"ispe":
                sizes.append((number(data, begin + 4, 4), number(data, begin + 8, 4)))
            if label == b"hvcC":
                lengths = (number(data, begin + 21, 1) & 3) + 1
                for unit in parameter_sets(data[begin:stop], steps):
                    tile = max(tile, coded_size(unit, steps), key=prod)
    pieces: dict[int, list[bytes]] = {}
    size_of_all = 0
    for item, at, last in extents(data, steps, meta.get(b"iloc", (0, 0)), meta.get(b"idat", (0, 0))[0]):
        pieces.setdefault(item, []).append(data[at:last])
        size_of_all += max(0, last - at)
        if size_of_all > 4 * len(data):
            raise UserError("its items overlap")
    frames = 1
    for item, parts_of_item in pieces.items():
        content = b"".join(parts_of_item)
        if kinds.get(item) == b"grid":
            wide = 4 if number(content, 1, 1) & 1 else 2
            sizes.append((number(content, 4, wide), number(content, 4 + wide, wide)))
        if kinds.get(item) == b"hvc1":
            item_units = list(units(content, lengths, steps))
            frames = max(frames, sum(unit[0] >> 1 & 63 < PICTURES and unit[2:3] >= b"\x80" for unit in item_units))
            for unit in item_units:
                if unit[0] >> 1 & 63 == PARAMETERS:
                    tile = max(tile, coded_size(unit, steps), key=prod)
    if not prod(tile):
        raise UserError("no size")
    parts = max(1, references(data, steps, *meta.get(b"iref", (0, 0)))) + layers - 1
    size = max(*sizes, tile, key=prod)
    estimate = costs("HEIF", size, data, decoder_bytes=DECODER_BYTES + 4 * layers, nanoseconds=DECODER_NANOSECONDS)
    work = parts * frames * prod(tile) * DECODER_NANOSECONDS[0] / 1e9
    return estimate._replace(
        memory=estimate.memory + TILE_BYTES * prod(tile),
        seconds=max(estimate.seconds, work + DECODER_NANOSECONDS[1] * len(data) / 1e9),
    )


def items(data: bytes, steps: Steps, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(number, type) of the items. Raises ValueError: a type of unknown cost, or compressed."""
    if not end:
        return
    for name, at, last in boxes(data, steps, start + (6 if not data[start] else 8), end):
        if name != b"infe":
            continue
        wide = 2 if data[at] < 3 else 4
        kind = data[at + 6 + wide : at + 10 + wide]
        if kind not in KINDS:
            raise UserError(f"an item of kind {kind.decode('ascii', 'replace')!r}, whose cost is not known")
        if kind == b"mime" and any(text.strip(b"\0") for text in data[at + 10 + wide : last].split(b"\0", 2)[2:]):
            raise UserError("a packed item, whose cost is not known")
        yield number(data, at + 4, wide), kind


def references(data: bytes, steps: Steps, start: int, end: int) -> int:
    """The number of references to tiles: a tile that is drawn twice counts twice."""
    if not end:
        return 0
    wide = 4 if data[start] else 2
    return sum(number(data, at + wide, 2) for name, at, _ in boxes(data, steps, start + 4, end) if name == b"dimg")


def parameter_sets(box: bytes, steps: Steps) -> Iterator[bytes]:
    """The units of type PARAMETERS in an hvcC box."""
    offset = 23
    for _ in range(number(box, 22, 1)):
        count, offset = number(box, offset + 1, 2), offset + 3
        for _ in range(min(count, MAX_ITEMS)):
            steps.take()
            length = number(box, offset, 2)
            unit, offset = box[offset + 2 : offset + 2 + length], offset + 2 + length
            if unit and unit[0] >> 1 & 63 == PARAMETERS:
                yield unit


def units(content: bytes, lengths: int, steps: Steps) -> Iterator[bytes]:
    """The HEVC units of an item, at most the first 1,000 bytes of each. `lengths`: bytes of the length before each."""
    offset = 0
    while offset + lengths < len(content):
        steps.take()
        length, offset = number(content, offset, lengths), offset + lengths
        if length:
            yield content[offset : offset + min(length, 1000)]
        offset += length


def coded_size(unit: bytes, steps: Steps) -> tuple[int, int]:
    """Width and height in a sequence parameter set (H.265, 7.3.2.2); the largest possible if they cannot be read."""
    steps.take(SEQUENCE_STEPS)
    read = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))

    def golomb() -> int:
        zeros = 0
        while zeros < 32 and read.remaining > 0 and not read(1):
            zeros += 1
        return (1 << zeros) - 1 + read(zeros)

    read(4)
    layers = read(3)
    read(1 + 88 + 8)  # nesting; profile, its flags, level
    present = [(read(1), read(1)) for _ in range(layers)]
    read(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        read(88 * profile + 8 * level)
    golomb()
    if golomb() == 3:
        read(1)
    width, height = golomb(), golomb()
    return (width, height) if 0 < width < 65536 and 0 < height < 65536 and read.remaining > 0 else (65536, 65536)
