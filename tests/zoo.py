"""Files as they lie in real buckets: whole, odd and broken ones."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def picture(seed: int = 0, width: int = 64, height: int = 48) -> Image.Image:
    """A smooth RGB picture; its four corners differ, so that turning it shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [255 * x, 255 * y, 128 + 100 * np.sin(6 * x * y + seed)]
    return Image.fromarray(np.rint(np.stack(planes, -1)).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files of these names, and the folders that they lie in."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def fill(folder: Path, count: int, start: int = 0, labels: tuple[str, ...] = ("",)) -> None:
    """`count` different PNG files, spread over folders named after the labels."""
    for number in range(start, start + count):
        put(folder / labels[number % len(labels)], {f"{number:05d}.png": encoded(picture(number, 16, 12))})


def turned(orientation: int, image: Image.Image | None = None, kind: str = "JPEG") -> bytes:
    """A picture that says how a camera was held: its viewer is to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image or picture(), kind, quality=95, exif=exif)


def bomb(width: int = 60000, height: int = 60000) -> bytes:
    """A PNG of a few kilobytes whose header promises gigabytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(5000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def cmyk(profile: bool = False) -> bytes:
    options = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()} if profile else {}
    return encoded(picture().convert("CMYK"), "JPEG", quality=95, **options)


def grey16() -> bytes:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def float_tiff() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)), "TIFF")


def palette(transparent: bool = False) -> bytes:
    return encoded(picture().quantize(32), "PNG", **({"transparency": 0} if transparent else {}))


def transparent() -> bytes:
    """Black below, see-through on the left half."""
    values = np.zeros((48, 64, 4), np.uint8)
    values[:, 32:, 3] = 255
    return encoded(Image.fromarray(values), "PNG")


def animated(kind: str) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)], **options)


def truncated(kind: str) -> bytes:
    data = encoded(picture(0, 300, 200), kind)
    return data[: len(data) * 2 // 3]


def tar_of(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()
