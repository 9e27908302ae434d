"""The cost of decoding an image, estimated from its header; all limits use these functions."""

from must.base.errors import UserError
from must.data.image.headers import heif
from must.data.image.headers.base import MAX_STEPS, Cost, Steps
from must.data.image.headers.boxes import ANIMATED, BRANDS, CODESTREAM, JP2, avif_cost, jpeg2000_cost
from must.data.image.headers.jpeg_tiff import JPEG, STARTS, jpeg_cost, tiff_cost
from must.data.image.headers.rasters import PNG, bmp_cost, gif_cost, ico_cost, png_cost, ppm_cost, tga_cost, webp_cost

MAX_PIXELS = 89_478_485
"""Default limit on width x height: Pillow's threshold for decompression bombs, 268 MB as RGB."""

MAX_RATIO = 200
"""Of the longer side to the shorter. A view with a shorter side of S pixels has a longer one of up to S times this."""

MAX_MEMORY, MAX_SECONDS = 1e9, 5.0
"""Bytes and seconds that decoding one image may take. A limit on pixels above the default raises both in proportion."""

BITMAPS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def cost(data: bytes, steps: int = MAX_STEPS) -> Cost:
    """The cost of decoding the whole image to RGB, for all known formats. Nothing is decoded.
    `steps`: the most parts of its headers that are parsed.
    Raises ValueError: an unknown format, or a feature whose cost is not known. The text is the reason."""
    counter = Steps(steps)
    if data.startswith(JPEG):
        return jpeg_cost(data, counter)
    if data.startswith(PNG):
        return png_cost(data, counter)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return webp_cost(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return gif_cost(data, counter)
    if data.startswith((*STARTS, b"MM\0\x2b")):
        return tiff_cost(data, counter)
    if data.startswith((JP2, CODESTREAM)):
        return jpeg2000_cost(data, counter)
    if data[4:8] == b"ftyp":
        return avif_or_heif_cost(data, counter)
    if data.startswith(b"BM"):
        return bmp_cost(data)
    if data.startswith(b"\0\0\1\0"):
        return ico_cost(data, counter)
    if data[:1] == b"P" and data[1:2] in b"0123456fy":
        return ppm_cost(data)
    if data.startswith(BITMAPS):
        return bmp_cost(data, 0, "DIB")
    return tga_cost(data)


def avif_or_heif_cost(data: bytes, steps: Steps) -> Cost:
    brand, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 1000)]
    if heif.is_heif(data):
        return heif.heif_cost(data, steps)
    if brand == b"avis" or (brand == b"msf1" and b"avis" in others):
        raise UserError(ANIMATED)
    if brand not in BRANDS:
        raise UserError("not an image of a known format")
    return avif_cost(data, steps)


def refusal(estimate: Cost, max_pixels: int) -> str:
    """Why an image of that cost is not decoded; "" if it is.

    Memory and time are limited to 1 GB and 5 s, or to 11 bytes and 56 ns per pixel of a larger `max_pixels`.
    """
    width, height = estimate.width, estimate.height
    if width < 1 or height < 1:
        return f"{width}x{height} has no pixels"
    if width * height > max_pixels:
        return f"{width}x{height} is more than {max_pixels} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width}x{height} is thinner than 1 to {MAX_RATIO}"
    share = max(1.0, max_pixels / MAX_PIXELS)
    if estimate.memory > share * MAX_MEMORY:
        return f"decoding it takes about {estimate.memory / 1e6:.0f} MB; {share * MAX_MEMORY / 1e6:.0f} are allowed"
    if estimate.seconds > share * MAX_SECONDS:
        return f"decoding it takes about {estimate.seconds:.0f} s; {share * MAX_SECONDS:.1f} are allowed"
    return ""
