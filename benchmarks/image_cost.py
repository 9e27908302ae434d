"""Decoding cost of JPEGs, PNGs and WebPs, each in a new process.

    python benchmarks/image_cost.py [NAME ...]      images whose name contains one of these; without a NAME all

One line per image: bytes, whether `must` accepts it, megabytes and seconds of one core, for `decode` (training,
prediction, serving) and `check` (sharding). The exit code is 1 if an accepted image needs 2 GB or 15 s.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MEMORY, SECONDS = 2e9, 15.0

CHILD = """
import json, resource, sys, time
from pathlib import Path
from must.data.image import decode as d
data = Path(sys.argv[1]).read_bytes()
d.Image.new("RGB", (64, 64)).convert("L")
result = {}
Path("/proc/self/clear_refs").write_text("5")
def peak(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
memory, started = peak("VmRSS"), time.process_time()
try:
    if sys.argv[2] == "check":
        d.check(d.identify(data))
    else:
        d.decode(data)
    result["accepted"] = True
except ValueError as error:
    result["accepted"], result["why"] = False, str(error)
result["peak"], result["cpu"] = peak("VmHWM") - memory, time.process_time() - started
print(json.dumps(result))
"""


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def texture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A repeated tile of blurred noise."""
    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    soft = Image.fromarray(tile, "RGBA").resize((256, 256), Image.Resampling.BICUBIC).convert(mode)
    picture = Image.new(mode, (width, height))
    row = Image.new(mode, (width, 256))
    for x in range(0, width, 256):
        row.paste(soft, (x, 0))
    for y in range(0, height, 256):
        picture.paste(row, (0, y))
    return picture


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, interlaced: bool = False, more: bytes = b"") -> bytes:
    """A PNG of zeros, compressed line by line to save memory."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(1)
    line = bytes(1 + (width * channels * depth + 7) // 8)
    parts = [packer.compress(line) for _ in range(height + height // 2 if interlaced else height)]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    body = b"".join([*parts, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_animated(width: int, height: int) -> bytes:
    frame = encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    u24 = lambda value: struct.pack("<I", value)[:3]  # noqa: E731
    body = u24(0) + u24(0) + u24(15) + u24(15) + u24(100) + b"\0" + frame
    parts = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + u24(width - 1) + u24(height - 1)
    parts += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose first AC scan is repeated."""
    data = encode(Image.new("L", (width, height)), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    third = data.find(b"\xff\xda", second + 2)
    extra = data[second : third if third > 0 else -2]
    return data[:second] + extra * (count - 2) + data[second:]


def exif_of_itself(tags: int, size: int) -> bytes:
    """A JPEG whose EXIF entries all point at the same bytes, in APP1 segments that Pillow joins."""
    entries = b"".join(struct.pack("<HHLL", 1000 + n, 7, size, 8) for n in range(tags))
    block = b"II\x2a\0\x08\0\0\0" + struct.pack("<H", tags) + entries + b"\0" * 4
    block = block.ljust(size, b"\0")
    pieces = [block[start : start + 65000] for start in range(0, len(block), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in pieces)
    data = encode(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + segments + data[2:]


def segments(marker: int, body: bytes, count: int) -> bytes:
    """A JPEG with the same segment `count` times."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + (struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body) * count + data[2:]


def profiles(count: int) -> bytes:
    """A PNG with `count` colour profiles, each of a megabyte of zeros."""
    return png(64, 64, 8, 2, more=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)) * count)


def cmyk_profile(steps: int) -> bytes:
    """A CMYK JPEG of 16x16 whose profile is a chain of `steps` matrix products."""

    def matrix(out: int) -> bytes:
        values = [float(n % 5 == 0) for n in range(4 * out)] + [0.0] * out
        return struct.pack(f">4s4xHH{len(values)}f", b"matf", 4, out, *values)

    offset = 16 + 8 * (steps + 1)
    table = struct.pack(">II", offset, len(matrix(4))) * steps
    table += struct.pack(">II", offset + len(matrix(4)), len(matrix(3)))
    chain = struct.pack(">4s4xHHI", b"mpet", 4, 3, steps + 1) + table + matrix(4) + matrix(3)
    curve = bytes(range(256))
    plain = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *[65536 * (n % 4 == 0) for n in range(9)])
    tags = {b"D2B0": chain, b"A2B0": plain + curve * 4 + bytes(48) + curve * 3}
    tags = {name: body.ljust(-(-len(body) // 4) * 4, b"\0") for name, body in tags.items()}
    directory, offset = struct.pack(">I", len(tags)), 132 + 12 * len(tags)
    for name, body in tags.items():
        directory += name + struct.pack(">II", offset, len(body))
        offset += len(body)
    head = struct.pack(">I4sI4s4s4s12x4s28xIII", offset, b"none", 0x04300000, b"prtr", b"CMYK", b"Lab ", b"acsp",
                       0xF6D6, 0x10000, 0xD32D)  # fmt: skip
    profile = head.ljust(128, b"\0") + directory + b"".join(tags.values())
    return encode(Image.new("CMYK", (16, 16)), "JPEG", icc_profile=profile)


CASES: dict[str, Callable[[], bytes]] = {
    "JPEG 4:2:0": lambda: encode(texture(9400, 9400), "JPEG", quality=85),
    "JPEG 4:4:4": lambda: encode(texture(9400, 9400), "JPEG", quality=85, subsampling=0),
    "JPEG turned (EXIF 6)": lambda: encode(texture(9400, 9400), "JPEG", exif=orientation(6)),
    "JPEG CMYK": lambda: encode(texture(9400, 9400, "CMYK"), "JPEG"),
    "JPEG progressive": lambda: encode(texture(9400, 9400), "JPEG", progressive=True),
    "JPEG 99 scans": lambda: scans(9400, 9400, 90),
    "JPEG EXIF of itself": lambda: exif_of_itself(4000, 1_000_000),
    "JPEG with 40 MB of tables": lambda: segments(0xDB, (b"\0" + b"\1" * 64) * 1000, 615),
    "JPEG with 40 MB of Photoshop's": lambda: segments(
        0xED, b"Photoshop 3.0\0" + b"8BIM\4\4".ljust(12, b"\0") * 5400, 615
    ),
    "JPEG CMYK, profile of 30,000 steps": lambda: cmyk_profile(30_000),
    "PNG with 3,000 profiles": lambda: profiles(3000),
    "PNG RGB": lambda: encode(texture(9400, 9400), "PNG", compress_level=1),
    "PNG RGBA": lambda: png(9400, 9400, 8, 6),
    "PNG palette, transparent": lambda: png(9400, 9400, 8, 3, more=chunk(b"tRNS", b"\0" * 200)),
    "PNG RGBA 16": lambda: png(9400, 9400, 16, 6),
    "PNG RGBA 16 interlaced": lambda: png(9400, 9400, 16, 6, interlaced=True),
    "WebP lossy, 20 MP": lambda: encode(texture(5000, 4000), "WEBP", quality=80, method=0),
    "WebP lossless, 20 MP": lambda: encode(texture(5000, 4000), "WEBP", lossless=True, quality=0, method=0),
    "WebP alpha, 20 MP": lambda: encode(texture(5000, 4000, "RGBA"), "WEBP", quality=80, method=0),
    "WebP 88 MP": lambda: encode(Image.new("RGB", (16383, 5400)), "WEBP", method=0),
    "WebP animated 20 MP": lambda: webp_animated(5000, 4000),
}


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def measure(path: Path, operation: str) -> dict[str, Any]:
    child = subprocess.run([sys.executable, "-c", CHILD, str(path), operation], capture_output=True, text=True)
    crash = {"accepted": False, "why": child.stderr[-300:], "crash": 1}
    return json.loads(child.stdout) if child.returncode == 0 else crash


def rows(words: list[str], folder: Path) -> Iterator[tuple[str, int, dict[str, Any], dict[str, Any]]]:
    for name, make in CASES.items():
        if not words or any(word in name for word in words):
            path = folder / "picture"
            path.write_bytes(make())
            yield name, path.stat().st_size, measure(path, "decode"), measure(path, "check")


def main() -> int:
    worst = 0
    print("| picture | bytes | | MB, decode | check | s, decode | check |")
    print("|---|--:|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, size, decode, check in rows(sys.argv[1:], Path(folder)):
            verdict = "taken" if decode["accepted"] else f"refused: {decode.get('why', '')[:90]}"
            costs = [f"{result.get('peak', 0) / 1e6:.0f}" for result in (decode, check)]
            times = [f"{result.get('cpu', 0):.2f}" for result in (decode, check)]
            print(f"| {name} | {size} | {verdict} | {' | '.join(costs)} | {' | '.join(times)} |", flush=True)
            for result in (decode, check):
                worst |= result["accepted"] and not (result["peak"] + size < MEMORY and result["cpu"] < SECONDS)
                worst |= "crash" in result
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
