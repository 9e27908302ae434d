"""Converts images to RGB, strip by strip: temporary copies may take eight times the memory of the result."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from must.base.errors import UserError

STRIP = 1 << 18  # pixels converted at once
CHAIN = b"mpet"  # in a profile: any number of processing steps, each of which is computed for 280,000 colours


def to_rgb(image: Any) -> Image.Image:
    """A loaded image as RGB, transparent ones on white."""
    if is_deep(image):
        return by_strips(image, Scale(image))
    if is_transparent(image):
        return by_strips(image, on_white)
    if image.mode == "CMYK":
        return cmyk_to_rgb(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def check_colors(image: Any) -> None:
    """Raises as `to_rgb`, in less time and memory: it can only fail at the first strip or at the range of values."""
    if is_deep(image):
        Scale(image)
    elif image.mode not in ("RGB", "L", "P", "CMYK"):  # converting these always succeeds
        to_rgb(next(strips(image))[1])


def is_transparent(image: Any) -> bool:
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def is_deep(image: Any) -> bool:
    """16 or 32 bits per pixel, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def strips(image: Any) -> Iterator[tuple[int, Any]]:
    """(first row, strip) of the image, a strip about STRIP pixels."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def by_strips(image: Any, convert: Callable[[Any], Image.Image]) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, strip in strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def on_white(image: Any) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def cmyk_to_rgb(image: Any) -> Image.Image:
    """By the colour profile in the image; without one, by Pillow's simple formula."""
    profile = image.info.get("icc_profile")
    if profile and CHAIN not in profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile: viewers ignore it, too
    return image.convert("RGB")


class Scale:
    """A strip of grey values of 16 or 32 bits, or floats -> RGB, by the range of the whole image.

    16-bit values are divided by 257. Files of 32 bits or floats do not define white: floats within 0..1 are scaled by
    255, other values from the darkest to the brightest one. The value that a PNG declares transparent becomes white."""

    def __init__(self, image: Any) -> None:
        lows, highs = [], []
        for _, strip in strips(image):
            values = np.asarray(strip)
            if not np.isfinite(values).all():
                raise UserError("pixel values that are not finite")
            lows.append(float(values.min()))
            highs.append(float(values.max()))
        self.low, self.high = min(lows), max(highs)
        self.transparent = image.info.get("transparency")

    def __call__(self, strip: Any) -> Image.Image:
        values = np.asarray(strip)
        if values.dtype.kind == "f" and self.low >= 0 and self.high <= 1:
            scaled = values * 255.0
        elif values.dtype.kind != "f" and self.low >= 0 and self.high <= 65535:
            scaled = values.astype(np.float64) / 257.0
        else:
            scaled = (values.astype(np.float64) - self.low) * (255.0 / max(self.high - self.low, 1e-12))
        grey = np.rint(scaled).astype(np.uint8)
        if isinstance(self.transparent, int):
            grey[values == self.transparent] = 255
        return Image.fromarray(grey).convert("RGB")
