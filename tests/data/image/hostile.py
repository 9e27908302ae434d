"""Files that cost more than their bytes are worth: parts upon each other, or that are not there."""

import struct
import zlib


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


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
    "BigTIFF of a million entries": directories(1_000_000),
    "GIF of a long comment": comment(2_000_000),
    "TIFF of one large tile": large_tile(26_752),
}
