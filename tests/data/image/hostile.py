"""Files that cost more than their bytes are worth: parts upon each other, or that are not there."""

import struct
import zlib


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


def zeros(size: int) -> bytes:
    """`size` zero bytes in zlib's format, from a repeated block, because compressing a gigabyte takes seconds."""
    first, last = (zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS) for _ in range(2))
    block = first.compress(bytes(1 << 20)) + first.flush(zlib.Z_FULL_FLUSH)
    end = last.compress(bytes(size % (1 << 20))) + last.flush()
    return b"\x78\xda" + block * (size >> 20) + end + struct.pack(">I", size % 65521 << 16 | 1)


def large_tile(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of `side` x `side` (deflate)."""
    packed = zeros(side * side)
    entries = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(packed)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries.items())
    return b"II\x2a\0" + struct.pack("<L", 8 + len(packed)) + packed + struct.pack("<H", 10) + directory + bytes(4)


COSTLY = {
    "JPEG 2000 of empty passes": passes(4096, 3),
    "BigTIFF of a million entries": directories(1_000_000),
    "GIF of a long comment": comment(2_000_000),
    "TIFF of one large tile": large_tile(26_752),
}
