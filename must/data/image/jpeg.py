"""The JPEG decoder simplejpeg (libjpeg-turbo), where it is installed: the pixels of Pillow's decoder in less time.

It is trusted with plain JPEGs only, and only as long as it has nothing to complain about: Pillow decides about the
others, so what is an image and what is damaged does not depend on what is installed.
"""

from typing import Any

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

PLAIN = {"RGB": "RGB", "L": "GRAY"}  # Pillow's mode -> colour space


def decode_plain(data: bytes, image: Any) -> Image.Image | None:
    """The pixels of `image`, which Pillow has opened and not yet decoded; None if Pillow should do it."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in PLAIN:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, PLAIN[image.mode], strict=True)
    except ValueError:
        return None
    return Image.frombuffer(image.mode, image.size, pixels, "raw", image.mode, 0, 1)


def decode_reduced(data: bytes, image: Any, factor: int) -> np.ndarray | None:
    """The pixels at 1 / factor (1, 2, 4 or 8) of the size, rounded up, by faster arithmetic: uint8 [H, W, 3] or None.

    The inverse cosine transform and the colours' upsampling are approximate; values differ by a few levels.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in PLAIN:
        return None
    width, height = (-(-side // factor) for side in image.size)
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", fastdct=True, fastupsample=True, min_height=height, min_width=width, min_factor=1, strict=True
        )
    except ValueError:
        return None
