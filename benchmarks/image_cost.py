"""Decoding cost of images: the estimate from the header and the measured cost, each in a new process.

    python benchmarks/image_cost.py [NAME ...]      images whose name contains one of these; without a NAME all

One line per image: bytes, megapixels, whether `must` accepts it, estimated and measured megabytes and seconds of one
core, for `decode` (training, prediction, serving) and `check` (sharding). The exit code is 1 if an accepted image needs
1 GB or 5 s, or more than estimated.
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

MEMORY, SECONDS = 1e9, 5.0
SPARE = 30e6  # bytes, of libraries that the first image loads

CHILD = """
import json, resource, sys, time
from pathlib import Path
from must.data.image import decode as d
data = Path(sys.argv[1]).read_bytes()
d.bounds.memory_limited = True  # in this process
d.Image.new("RGB", (64, 64)).convert("L")
result = {}
try:
    from must.data.image.cost import cost
    estimate = cost(data)
    result = {"pixels": estimate.pixels, "memory": estimate.memory, "seconds": estimate.seconds}
except (ValueError, ImportError) as error:
    result = {"why": str(error)}
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


def tiff(entries: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """Little-endian, one directory after `data`, which begins at byte 8. Types: 3 short, 4 long."""
    directory, extra, start = b"", b"", 8 + len(data)
    extra_start = start + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'HL'[kind - 3]}", *values)
        if len(packed) > 4:
            directory += struct.pack("<HHLL", tag, kind, len(values), extra_start + len(extra))
            extra += packed
        else:
            directory += struct.pack("<HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II\x2a\0" + struct.pack("<L", start)
    return head + data + struct.pack("<H", len(entries)) + directory + b"\0" * 4 + extra


def zeros(size: int) -> bytes:
    """`size` zero bytes in zlib's format, from a repeated block, because compressing a gigabyte takes seconds."""
    first, last = (zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS) for _ in range(2))
    block = first.compress(bytes(1 << 20)) + first.flush(zlib.Z_FULL_FLUSH)
    end = last.compress(bytes(size % (1 << 20))) + last.flush()
    return b"\x78\xda" + block * (size >> 20) + end + struct.pack(">I", size % 65521 << 16 | 1)


def tiff_of(side: int, part: int, planes: int = 1, rows: int = 0) -> bytes:
    """`side` x `side` pixels in one tile of `part` x `part` (deflate), or in strips of `rows` rows."""
    size = part * part if not rows else side * min(rows, 1 << 24)
    packed = zeros(size)
    entries: dict[int, tuple[int, list[int]]] = {
        256: (4, [side]), 257: (4, [side]), 258: (3, [8] * planes), 259: (3, [8]),
        262: (3, [2 if planes == 3 else 1]), 277: (3, [planes]), 284: (3, [2 if planes > 1 else 1]),
    }  # fmt: skip
    offsets, lengths = [8] * planes, [len(packed)] * planes
    if rows:
        entries |= {273: (4, offsets), 278: (4, [rows]), 279: (4, lengths)}
    else:
        entries |= {322: (4, [part]), 323: (4, [part]), 324: (4, offsets), 325: (4, lengths)}
    return tiff(entries, packed)


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose first AC scan is repeated."""
    data = encode(Image.new("L", (width, height)), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    third = data.find(b"\xff\xda", second + 2)
    extra = data[second : third if third > 0 else -2]
    return data[:second] + extra * (count - 2) + data[second:]


def cmyk(width: int, height: int) -> bytes:
    return encode(texture(width, height, "CMYK"), "JPEG")


def patched_jp2(side: int) -> bytes:
    data = encode(Image.new("RGB", (64, 64)), "JPEG2000")
    sizes = struct.pack(">II", side, side)
    return data.replace(struct.pack(">II", 64, 64), sizes)


def patched_avif(side: int) -> bytes:
    data = encode(Image.new("RGB", (64, 64)), "AVIF")
    offset = data.index(b"ispe") + 8
    return data[:offset] + struct.pack(">II", side, side) + data[offset + 8 :]


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


def jp2_tiled(side: int, tile: int, more: bytes = b"") -> bytes:
    """A 64x64 codestream whose header has `side` and `tile` as sizes, with `more` segments."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True)
    data = data[:8] + struct.pack(">8I", side, side, 0, 0, tile, tile, 0, 0) + data[40:]
    offset = data.index(b"\xff\x90")
    return data[:offset] + more + data[offset:]


TRANSFORM = b"\xff\x74" + struct.pack(">HHHH", 60000, 0, 0x0100, 0) + bytes(59992)


def icon(side: int) -> bytes:
    inner = png(side, side, 8, 6)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def bmp_rle(side: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    palette = b"".join(bytes([n, 255 - n, n, 0]) for n in range(256))
    rows = (b"\x01\x07" * side + b"\0\0") * side
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(palette)) + head + palette + rows


CASES: dict[str, Callable[[], bytes]] = {
    "JPEG 4:2:0": lambda: encode(texture(9400, 9400), "JPEG", quality=85),
    "JPEG 4:4:4": lambda: encode(texture(9400, 9400), "JPEG", quality=85, subsampling=0),
    "JPEG grey": lambda: encode(texture(9400, 9400, "L"), "JPEG"),
    "JPEG turned (EXIF 6)": lambda: encode(texture(9400, 9400), "JPEG", exif=orientation(6)),
    "JPEG CMYK": lambda: cmyk(9400, 9400),
    "JPEG progressive, 12 MP": lambda: encode(texture(4000, 3000), "JPEG", progressive=True),
    "JPEG progressive": lambda: encode(texture(9400, 9400), "JPEG", progressive=True),
    "JPEG 20 scans, 20 MP": lambda: scans(4500, 4500, 12),
    "JPEG 99 scans": lambda: scans(9400, 9400, 90),
    "JPEG 99 scans, 4 MP": lambda: scans(2000, 2000, 90),
    "JPEG EXIF of itself": lambda: exif_of_itself(4000, 1_000_000),
    "JPEG with 40 MB of tables": lambda: segments(0xDB, (b"\0" + b"\1" * 64) * 1000, 615),
    "JPEG with 250 MB of tables": lambda: segments(0xDB, (b"\0" + b"\1" * 64) * 1000, 3850),
    "JPEG with 40 MB of Photoshop's": lambda: segments(
        0xED, b"Photoshop 3.0\0" + b"8BIM\4\4".ljust(12, b"\0") * 5400, 615
    ),
    "JPEG CMYK, profile of 30,000 steps": lambda: cmyk_profile(30_000),
    "PNG with 3,000 profiles": lambda: profiles(3000),
    "PNG with 9,000 profiles": lambda: profiles(9000),
    "PNG RGB": lambda: encode(texture(9400, 9400), "PNG", compress_level=1),
    "PNG RGB zeros": lambda: png(9400, 9400, 8, 2),
    "PNG RGBA": lambda: png(9400, 9400, 8, 6),
    "PNG palette": lambda: png(9400, 9400, 8, 3),
    "PNG palette, transparent": lambda: png(9400, 9400, 8, 3, more=chunk(b"tRNS", b"\0" * 200)),
    "PNG grey": lambda: png(9400, 9400, 8, 0),
    "PNG 1 bit": lambda: png(9400, 9400, 1, 0),
    "PNG grey 16": lambda: png(9400, 9400, 16, 0),
    "PNG grey-alpha 16": lambda: png(9400, 9400, 16, 4),
    "PNG RGB 16": lambda: png(9400, 9400, 16, 2),
    "PNG RGBA 16": lambda: png(9400, 9400, 16, 6),
    "PNG RGBA interlaced": lambda: png(9400, 9400, 8, 6, interlaced=True),
    "PNG RGBA 16 interlaced": lambda: png(9400, 9400, 16, 6, interlaced=True),
    "WebP lossy, 20 MP": lambda: encode(texture(5000, 4000), "WEBP", quality=80, method=0),
    "WebP lossless, 20 MP": lambda: encode(texture(5000, 4000), "WEBP", lossless=True, quality=0, method=0),
    "WebP alpha, 20 MP": lambda: encode(texture(5000, 4000, "RGBA"), "WEBP", quality=80, method=0),
    "WebP 88 MP": lambda: encode(Image.new("RGB", (16383, 5400)), "WEBP", method=0),
    "WebP animated 20 MP": lambda: webp_animated(5000, 4000),
    "WebP animated 88 MP": lambda: webp_animated(16383, 5400),
    "GIF": lambda: encode(Image.new("P", (9400, 9400)), "GIF"),
    "GIF transparent": lambda: encode(Image.new("P", (9400, 9400)), "GIF", transparency=0),
    "BMP": lambda: encode(Image.new("RGB", (9400, 9400)), "BMP"),
    "BMP RLE, 1 MP": lambda: bmp_rle(1000),
    "BMP RLE, 9 MP": lambda: bmp_rle(3000),
    "TGA": lambda: encode(Image.new("RGB", (9400, 9400)), "TGA"),
    "TGA RLE RGBA": lambda: encode(Image.new("RGBA", (9400, 9400)), "TGA", compression="tga_rle"),
    "PPM": lambda: encode(Image.new("RGB", (9400, 9400)), "PPM"),
    "PPM 16 bits, 4 MP": lambda: b"P6 2000 2000 65535\n" + bytes(24_000_000),
    "PPM maxval 100, 1 MP": lambda: b"P6 1000 1000 100\n" + bytes(3_000_000),
    "PPM maxval 100, 9 MP": lambda: b"P6 3000 3000 100\n" + bytes(27_000_000),
    "PGM float": lambda: b"Pf 9400 9400 -1.0\n" + bytes(4 * 9400 * 9400),
    "PPM plain, 1 MP": lambda: b"P3 1000 1000 255\n" + b"7 " * 3_000_000,
    "PPM plain, 9 MP": lambda: b"P3 3000 3000 255\n" + b"7 " * 27_000_000,
    "PPM of spaces": lambda: b"P6" + b" " * 20_000_000 + b"2 2 255\n" + bytes(12),
    "TIFF strips": lambda: encode(Image.new("RGB", (9400, 9400)), "TIFF"),
    "TIFF deflate": lambda: encode(texture(9400, 9400), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF LZW": lambda: encode(texture(9400, 9400), "TIFF", compression="tiff_lzw"),
    "TIFF LZW RGBA": lambda: encode(Image.new("RGBA", (9400, 9400)), "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": lambda: encode(texture(9400, 9400), "TIFF", compression="jpeg"),
    "TIFF group 4": lambda: encode(Image.new("1", (9400, 9400)), "TIFF", compression="group4"),
    "TIFF float": lambda: encode(Image.new("F", (9400, 9400)), "TIFF"),
    "TIFF float deflate": lambda: encode(Image.new("F", (9400, 9400)), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF 16 bits": lambda: encode(Image.new("I;16", (9400, 9400)), "TIFF"),
    "TIFF CMYK": lambda: encode(Image.new("CMYK", (9400, 9400)), "TIFF", compression="tiff_lzw"),
    "TIFF LAB": lambda: encode(Image.new("LAB", (9400, 9400)), "TIFF"),
    "TIFF one strip": lambda: tiff_of(9400, 0, rows=9400),
    "TIFF strip of 26752 rows": lambda: tiff_of(64, 0, rows=2**24),
    "TIFF tile of 26752": lambda: tiff_of(64, 26752),
    "TIFF tile of 8192": lambda: tiff_of(64, 8192),
    "TIFF three planes of 32752": lambda: tiff_of(64, 32752, planes=3),
    "TIFF three planes of 8192": lambda: tiff_of(64, 8192, planes=3),
    "JPEG 2000, 20 MP": lambda: encode(texture(5000, 4000), "JPEG2000", quality_mode="rates", quality_layers=[20]),
    "JPEG 2000 tiles, 20 MP": lambda: encode(texture(5000, 4000), "JPEG2000", tile_size=(512, 512)),
    "JPEG 2000 of 16,000 tiles": lambda: jp2_tiled(2032, 16),
    "JPEG 2000 of 65,000 tiles": lambda: jp2_tiled(4080, 16),
    "JPEG 2000 of 62,500 tiles, own transform": lambda: jp2_tiled(1000, 4, TRANSFORM),
    "JPEG 2000 of 64 that says 3000": lambda: patched_jp2(3000),
    "JPEG 2000 of 64 that says 9400": lambda: patched_jp2(9400),
    "JPEG 2000 code-blocks of 4": lambda: encode(Image.new("RGB", (2000, 2000)), "JPEG2000", codeblock_size=(4, 4)),
    "JPEG 2000 precincts of 1": lambda: encode(
        Image.new("RGB", (2000, 2000)), "JPEG2000", precinct_size=(64, 64), codeblock_size=(32, 32)
    ),
    "AVIF, 20 MP": lambda: encode(texture(5000, 4000), "AVIF", speed=10),
    "AVIF 4:4:4 alpha, 12 MP": lambda: encode(texture(4000, 3000, "RGBA"), "AVIF", speed=10, subsampling="4:4:4"),
    "AVIF of 64 that says 3000": lambda: patched_avif(3000),
    "AVIF of 64 that says 9000": lambda: patched_avif(9000),
    "AVIF animated": lambda: encode(
        Image.new("RGB", (640, 480)), "AVIF", save_all=True, append_images=[Image.new("RGB", (640, 480), "red")]
    ),
    "ICO 256": lambda: encode(Image.new("RGBA", (256, 256)), "ICO"),
    "ICO of a large PNG": lambda: icon(9400),
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
    print("| picture | bytes | MP | | MB estimated | decode | check | s estimated | decode | check |")
    print("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, size, decode, check in rows(sys.argv[1:], Path(folder)):
            verdict = "taken" if decode["accepted"] else f"refused: {decode.get('why', '')[:90]}"
            estimated = f"{decode['memory'] / 1e6:.0f}" if "memory" in decode else ""
            seconds = f"{decode['seconds']:.2f}" if "seconds" in decode else ""
            pixels = f"{decode['pixels'] / 1e6:.1f}" if "pixels" in decode else ""
            costs = [f"{result.get('peak', 0) / 1e6:.0f}" for result in (decode, check)]
            times = [f"{result.get('cpu', 0):.2f}" for result in (decode, check)]
            print(
                f"| {name} | {size} | {pixels} | {verdict} | {estimated} | {' | '.join(costs)} | {seconds} "
                f"| {' | '.join(times)} |",
                flush=True,
            )
            for result in (decode, check):
                worst |= result["accepted"] and not (
                    result["peak"] + size < min(MEMORY, result["memory"] + SPARE) and result["cpu"] < SECONDS
                )
                worst |= "crash" in result
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
