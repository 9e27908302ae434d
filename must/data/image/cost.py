"""What a picture will cost, from its header alone: the one function that every bound asks."""

from must.base.errors import UserError
from must.data.image.headers import heif
from must.data.image.headers.base import MAX_STEPS, Cost, Steps
from must.data.image.headers.boxes import ANIMATED, BRANDS, CODESTREAM, JP2, avif_cost, jpeg2000_cost
from must.data.image.headers.directory import STARTS
from must.data.image.headers.jpeg import JPEG, jpeg_cost
from must.data.image.headers.rasters import PNG, bmp_cost, gif_cost, ico_cost, png_cost, ppm_cost, tga_cost, webp_cost
from must.data.image.headers.tiff import tiff_cost

MAX_PIXELS = 89_478_485
"""Default limit on width x height, Pillow's own threshold of a decompression bomb: 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view makes the shorter side S pixels long, so the longer one S times this."""

MAX_MEMORY, MAX_SECONDS = 1e9, 5.0
"""What decoding one picture may take. A limit on pixels above the default raises both in proportion."""

BITMAPS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def cost(data: bytes, steps: int = MAX_STEPS) -> Cost:
    """Of decoding the whole picture to RGB, for any of the known formats. Nothing is decoded.
    `steps`: parts of its headers that are looked at.
    Raises ValueError: no known format, or one of its features whose cost is not known. The text is the reason."""
    left = Steps(steps)
    if data.startswith(JPEG):
        return jpeg_cost(data, left)
    if data.startswith(PNG):
        return png_cost(data, left)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return webp_cost(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return gif_cost(data, left)
    if data.startswith((*STARTS, b"MM\0\x2b")):
        return tiff_cost(data, left)
    if data.startswith((JP2, CODESTREAM)):
        return jpeg2000_cost(data, left)
    if data[4:8] == b"ftyp":
        return by_brand(data, left)
    if data.startswith(b"BM"):
        return bmp_cost(data)
    if data.startswith(b"\0\0\1\0"):
        return ico_cost(data, left)
    if data[:1] == b"P" and data[1:2] in b"0123456fy":
        return ppm_cost(data)
    if data.startswith(BITMAPS):
        return bmp_cost(data, 0, "DIB")
    return tga_cost(data)


def by_brand(data: bytes, steps: Steps) -> Cost:
    """Of AVIF or HEIC."""
    brand, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 1000)]
    if heif.is_heif(data):
        return heif.heif_cost(data, steps)
    if brand == b"avis" or (brand == b"msf1" and b"avis" in others):
        raise UserError(ANIMATED)
    if brand not in BRANDS:
        raise UserError("not an image of a known format")
    return avif_cost(data, steps)


def refusal(found: Cost, max_pixels: int) -> str:
    """Why a picture of that cost is not to be decoded; "" if it may be.

    Memory and work are bounded, too: by 1 GB and 5 s, or by 11 bytes and 56 ns a pixel of a larger `max_pixels`.
    """
    width, height = found.width, found.height
    if width < 1 or height < 1:
        return f"{width}x{height} has no pixels"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    share = max(1.0, max_pixels / MAX_PIXELS)
    if found.memory > share * MAX_MEMORY:
        return f"decoding it takes about {found.memory / 1e6:.0f} MB; {share * MAX_MEMORY / 1e6:.0f} are allowed"
    if found.seconds > share * MAX_SECONDS:
        return f"decoding it takes about {found.seconds:.0f} s; {share * MAX_SECONDS:.1f} are allowed"
    return ""
