"""What was costly once, a few for each target: small files that took gigabytes, minutes, or everybody's turn."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow
from pyarrow import parquet

from benchmarks import image_cost as hard
from tests import zoo


def pictures() -> dict[str, bytes]:
    return {
        "WebP animated": hard.webp_animated(16383, 5400),
        "JPEG of 90 scans": hard.scans(2000, 2000, 90),
        "JPEG whose EXIF is itself": hard.exif_of_itself(4000, 200_000),
        "JPEG of filling": b"\xff\xd8" + b"\xff" * 500_000,
        "JPEG of nothing between segments": b"\xff\xd8\xff\xe0\0\2" + bytes(500_000),
        "PNG 16 bits interlaced": hard.png(3000, 3000, 16, 6, interlaced=True),
        "JPEG of tables": hard.segments(0xDB, (b"\0" + b"\1" * 64) * 1000, 60),
        "JPEG CMYK, profile of 10,000 steps": hard.cmyk_profile(10_000),
        "PNG of many profiles": hard.profiles(300),
    }


def tars() -> dict[str, bytes]:
    def header(kind: bytes, size: int) -> bytes:
        block = b"h".ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % size + b"0" * 11 + b"\0" + b" " * 8 + kind
        block = (block.ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
        return signed(block)

    def signed(block: bytes) -> bytes:
        return block[:148] + b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:]) + block[156:]

    def attributes(content: bytes, kind: bytes = b"x", members: int = 1) -> bytes:
        filled = content.ljust(-(-len(content) // 512) * 512, b"\0")
        return header(kind, len(content)) + filled + header(b"0", 0) * members

    part = b"%011o\0" % 0 * 2
    sparse = signed((header(b"S", 0)[:386] + part * 4 + b"\1").ljust(512, b"\0"))
    sparse += (part * 21 + b"\1").ljust(512, b"\0") * 20_000
    keys = b"".join(b"%d %s=\n" % (len(b"%d" % n) + 6, b"%d" % n) for n in range(10_000, 99_999))

    long = io.BytesIO()
    with tarfile.open(fileobj=long, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("n" * 900_000 + ".png"))
    lists, label = io.BytesIO(), b'{"label": [' + b"[]," * 340_000 + b"[]]}"
    with tarfile.open(fileobj=lists, mode="w") as tar:
        for number in range(8):
            (info := tarfile.TarInfo(f"{number}.json")).size = len(label)
            tar.addfile(info, io.BytesIO(label))
    return {
        "digits": attributes(b"1" * 60_000) + bytes(1024),
        "digits of a sparse file": attributes(b"22 GNU.sparse.major=0\n" + b"1" * 60_000) + bytes(1024),
        "attributes of 1 MB": attributes(b"1000000 path=" + b"y" * 1_000_000) + bytes(1024),
        "a sparse file of 420,000 parts": sparse + bytes(1024),
        "90,000 attributes of all members": attributes(keys, b"g", 2000) + bytes(1024),
        "a chain of headers": header(b"L", 0) * 20_000 + header(b"0", 0) + bytes(1024),
        "40,000 empty members": header(b"0", 0) * 40_000 + bytes(1024),
        "a name of 900 kB": long.getvalue(),
        "labels that are lists": lists.getvalue(),
    }


def zips() -> dict[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00000.png", zoo.encoded(zoo.picture()))
    data = file.getvalue()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    directory = b"".join(data[start:end].replace(b"00000", b"%05d" % number) for number in range(5000))
    tail = data[end : end + 8] + struct.pack("<HHII", 5000, 5000, len(directory), start) + b"\0\0"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bmp", bytes(50_000_000))
    return {"one member 5,000 times": data[:start] + directory + tail, "50 MB of zeros": bomb.getvalue()}


def tables() -> dict[str, bytes]:
    sink = pyarrow.BufferOutputStream()
    label = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300), pyarrow.array(["x" * 1_000_000]))
    parquet.write_table(pyarrow.table({"image": [b"one"] * 300, "label": label}), sink)
    row = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"image": [b"one", bytes(300_000_000)]}), row, compression="zstd")
    nothing = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"image": pyarrow.nulls(300_000, pyarrow.binary())}), nothing)
    return {
        "a label of 1 MB, 300 times": sink.getvalue().to_pybytes(),
        "a row of 300 MB": row.getvalue().to_pybytes(),
        "300,000 rows of nothing": nothing.getvalue().to_pybytes(),
    }


def class_files() -> dict[str, bytes]:
    return {
        "an integer of 48,000 digits": b"classes: [cat, " + b"7" * 48_000 + b"]\n",
        "base 60": b"classes: [cat, 1" + b":59" * 20_000 + b"]\n",
        "20,000 names by 10,000 templates": b"classes:\n"
        + b"".join(b"- n%d\n" % n for n in range(20_000))
        + b"templates:\n"
        + b"".join(b"- t%d {}\n" % n for n in range(10_000)),
        "one list of prompts for 3,000 classes": b"classes:\n- {name: n, prompts: &p ["
        + b"x," * 5000
        + b"x]}\n"
        + b"".join(b"- {name: n%d, prompts: *p}\n" % n for n in range(3000)),
        "deep": b"classes: " + b"[" * 5000,
        "aliases of aliases": b"a: &a [x, x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c, *%c]\n" % (n + 1, n + 1, n, n, n) for n in range(97, 115)),
    }


def requests() -> dict[str, bytes]:
    """JSON of the open inference protocol, and bytes that follow it, after their length."""

    def request(tensor: object, blob: bytes = b"") -> bytes:
        header = json.dumps({"inputs": [tensor]}).encode()
        return struct.pack("<I", len(header)) + header + blob

    image = {"name": "image", "datatype": "BYTES", "shape": [64]}
    return {
        "empty lists": request({**image, "data": [[]] * 200_000}),
        "lists in lists": struct.pack("<I", 100_000) + b"[" * 100_000,
        "empty strings": request({**image, "parameters": {"binary_data_size": 256}}, bytes(256)),
        "a long string among numbers": request(
            {**image, "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": ["x" * 500_000] + [1] * 3071}
        ),
    }


CORPUS: dict[str, Callable[[], dict[str, bytes]]] = {
    "cost": pictures,
    "picture": pictures,
    "tar": tars,
    "zip": zips,
    "parquet": tables,
    "classes": class_files,
    "request": requests,
}
