"""Files whose headers cost more than their bytes are worth: parts upon each other, or that are not there."""

import struct


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


# -- JPEG 2000 ---------------------------------------------------------------------------------------------------------
def codestream(side: int, components: int = 1, exponent: int = 8) -> bytes:
    """The main header: one tile, one resolution, code-blocks of 64x64, so many bits for the largest coefficient."""
    size = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, components) + b"\7\1\1" * components
    return b"".join((
        b"\xff\x4f\xff\x51", struct.pack(">H", 2 + len(size)), size,
        b"\xff\x52\0\x0c\0\0\0\1\0\0\4\4\0\1", b"\xff\x5c\0\4\x40", bytes([exponent << 3]),
    ))  # fmt: skip


def tile_part(length: int) -> bytes:
    return b"\xff\x90" + struct.pack(">HHIBB", 10, 0, length, 0, 1)


def tile_parts(count: int, header: bytes = b"\xff\x93") -> bytes:
    return codestream(64) + (tile_part(12 + len(header)) + header) * count + b"\xff\xd9"


def stuffed(bits: str) -> bytes:
    """Bits, to which one is added after each byte FF."""
    out, place = bytearray(), 0
    while place < len(bits):
        most = 7 if out[-1:] == b"\xff" else 8
        out.append(int(bits[place : place + most].ljust(most, "0"), 2))
        place += most
    return bytes(out)


def passes(side: int, components: int, length: int = 8, exponent: int = 28) -> bytes:
    """A JPEG 2000 whose code-blocks claim 85 passes over a few bytes each."""
    across, body = side // 64, b""
    levels = [level for level in range(8) if across >> level]
    for _ in range(components):
        bits, seen = ["1"], set()
        for block in range(across * across):
            y, x = divmod(block, across)
            for tree in "included", "no zero planes":
                for level in reversed(levels):
                    if (tree, level, y >> level, x >> level) not in seen:
                        seen.add((tree, level, y >> level, x >> level))
                        bits.append("1")
            bits.append(f"{0x1FF:b}{85 - 37:07b}0{length:09b}")  # lengths have 3 + 6 bits
        body += stuffed("".join(bits)) + bytes(n * 97 % 255 for n in range(length)) * across * across
    return codestream(side, components, exponent) + tile_part(14 + len(body)) + b"\xff\x93" + body + b"\xff\xd9"


# -- AVIF and HEIC -----------------------------------------------------------------------------------------------------
SIZE = box(b"iprp", box(b"ipco", box(b"ispe", b"\0\0\0\0" + struct.pack(">II", 64, 64))))


def brand(name: bytes) -> bytes:
    return box(b"ftyp", name + b"\0\0\0\0" + name + b"mif1miaf")


def locations(items: int, pieces: int, start: int, length: int) -> bytes:
    """The box that says where items are, each of them in so many pieces, which are all the same."""
    body = b"\0\0\0\0\x44\0" + struct.pack(">H", items)
    piece = struct.pack(">II", start, length)
    return box(b"iloc", body + b"".join(struct.pack(">HHH", n + 1, 0, pieces) + piece * pieces for n in range(items)))


def pieces_of_nothing(name: bytes, items: int = 1000) -> bytes:
    """1,000 items of 1,000 pieces each, for none of which the file has a byte."""
    body = b"\0\0\0\0\0\x40" + struct.pack(">H", items)
    body += b"".join(struct.pack(">HHIH", n + 1, 0, 0x7FFFFFFF, 1000) for n in range(items))
    return brand(name) + box(b"meta", b"\0\0\0\0" + box(b"iloc", body) + SIZE)


def described(metas: int, fill: int, name: bytes = b"avif") -> bytes:
    """So many boxes of metadata, each of which points four times at the same units of AV1."""
    size = len(box(b"meta", b"\0\0\0\0" + locations(1, 4, 0, 0) + SIZE))
    start = len(brand(name)) + size * metas + 8
    one = box(b"meta", b"\0\0\0\0" + locations(1, 4, start, fill) + SIZE)
    return brand(name) + one * metas + box(b"mdat", b"\x12\0" * (fill // 2))


def sequences(count: int) -> bytes:
    """An AVIF of so many sequence headers, each of the longest kind."""
    unit = b"\x0a\x40\x03\xff" + b"\xff" * 62
    start = len(brand(b"avif")) + len(box(b"meta", b"\0\0\0\0" + locations(1, 1, 0, 0) + SIZE)) + 8
    meta = box(b"meta", b"\0\0\0\0" + locations(1, 1, start, len(unit) * count) + SIZE)
    return brand(b"avif") + meta + box(b"mdat", unit * count)


# -- TIFF and GIF ------------------------------------------------------------------------------------------------------
def directories(entries: int, tags: tuple[int, ...] = (34665, 34853, 40965)) -> bytes:
    """A BigTIFF whose directories of EXIF, GPS and interoperability are one and the same, of so many entries."""
    pixels = bytes(16 * 16 * 3)
    fields = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 2), (277, 3, 3), (278, 4, 16)]
    first = 16 + 8 + 20 * (len(fields) + 2 + len(tags)) + 8
    fields += [(273, 16, first), (279, 4, len(pixels)), *((tag, 16, first + len(pixels)) for tag in tags)]
    out = b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, len(fields))
    out += b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in sorted(fields))
    return out + bytes(8) + pixels + struct.pack("<Q", entries) + bytes(20 * entries) + bytes(8)


def comment(blocks: int) -> bytes:
    """A GIF with one comment of so many blocks of a byte."""
    return b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1x" * blocks + b"\0,"


COSTLY = {
    "JPEG 2000 of 90,000 tile-parts": tile_parts(90_000),
    "JPEG 2000 of tile-parts without an end": tile_parts(20_000, b""),
    "JPEG 2000 of a long tile's header": tile_parts(1, b"\xff\x64\0\2" * 300_000 + b"\xff\x93"),
    "AVIF of nothing": pieces_of_nothing(b"avif"),
    "HEIC of nothing": pieces_of_nothing(b"heic"),
    "AVIF described 900 times": described(900, 90_000),
    "AVIF of many units": described(1, 8_000_000),
    "AVIF of sequences": sequences(10_000),
    "BigTIFF of a million entries": directories(1_000_000),
    "GIF of a long comment": comment(2_000_000),
}

SMALL = [
    pieces_of_nothing(b"avif", 90),
    described(4, 900),
    tile_parts(20),
    passes(64, 1),
    directories(9),
    comment(99),
    sequences(9),
]
"""Seeds for a fuzzer."""
