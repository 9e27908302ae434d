"""Files that cost more than their bytes are worth."""

import struct
import zlib


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


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
