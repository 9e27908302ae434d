"""Decodes an image file to RGB as an image viewer shows it, for sharding, training and prediction."""

import importlib
import io
from typing import Any

import numpy as np
from PIL import Image

from must.base.errors import UserError
from must.base.text import make_one_line
from must.data.image.limits import (
    MAX_EXIF,
    MAX_PIXELS,
    can_read_heic,
    check_jpeg,
    detect_format,
    explain_size_refusal,
    is_heic,
)
from must.data.image.preprocess import EvalView, Levels, check_colors, to_rgb

try:  # libjpeg-turbo: the pixels of Pillow in less time. For plain JPEGs only; damaged ones go to Pillow
    import simplejpeg
except ImportError:
    simplejpeg = None

# Only formats whose decoders are safe for untrusted bytes: no EPS or WMF, which start other programs.
Image.init()  # registers the formats that this Pillow was built with
if can_read_heic():  # and HEIC: the main image only
    importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
KNOWN_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "TGA")
FORMATS = tuple(name for name in KNOWN_FORMATS if name in Image.OPEN)
ENDINGS_BY_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}
ORIENTATION = 0x0112
SPACES = {"RGB": "RGB", "L": "GRAY"}  # Pillow's mode -> simplejpeg's colour space


def decode(data: bytes, max_pixels: int = MAX_PIXELS, shorter_side: int = 0, levels: Levels = ()) -> Image.Image:
    """The whole image as RGB [height, width], fully decoded.

    EXIF orientation is applied; transparent images are laid on white; CMYK is converted by its colour profile, if it
    has one; 16 bits and floats are scaled to 8 bits by `levels`; of an animation the first frame is used. A plain RGB
    or grey JPEG or PNG gives exactly ``PIL.Image.open(file).convert("RGB")``.
    `shorter_side`: when given, a large JPEG may be decoded at a fraction of its size (libjpeg's scaling), but never
    with a shorter side below this many pixels.
    Raises ValueError: the bytes are no image, are damaged, or have more than `max_pixels` pixels or too many parts
    (limits.py). The text is the reason."""
    image = identify(data, max_pixels)
    try:
        if not shorter_side and (pixels := decode_plain(data, image)) is not None:
            return rotate_upright(pixels, read_orientation(image))
        if shorter_side and image.format in ("JPEG", "MPO"):
            width, height = image.size
            scale = shorter_side / min(width, height)
            image.draft(None, (max(1, int(width * scale)), max(1, int(height * scale))))
        image.load()
        rgb, exif = to_rgb(image, levels), read_orientation(image)
        del image  # with its pixels, `rgb` and the rotated copy would be three times the memory
        return rotate_upright(rgb, exif)
    except Exception as error:
        raise UserError(describe_decode_error(error)) from error


def decode_view(data: bytes, view: EvalView, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The result of `view` for the decoded image. Raises UserError: any error of this image."""
    try:
        return view(decode(data, max_pixels, levels=view.preprocess.levels))
    except Exception as error:
        raise UserError(describe_decode_error(error)) from error


def identify(data: bytes, max_pixels: int = MAX_PIXELS) -> Any:
    """The image, opened and not decoded: size and format are known. Raises ValueError: as `decode`."""
    if not data:
        raise UserError("empty file")
    if "HEIF" not in FORMATS and is_heic(data):
        raise UserError("HEIC, which is read where pillow-heif is installed (pip install pillow-heif)")
    kind = detect_format(data)
    if kind == "JPEG":
        check_jpeg(data)
    try:
        image: Any = Image.open(io.BytesIO(data), formats=[kind] if kind else FORMATS)
        if image.format == "ICO":  # whose list may understate the size of the picture in it
            image.load()
    except Exception as error:
        raise UserError(describe_decode_error(error)) from error
    if refused := explain_size_refusal(image.width, image.height, max_pixels):
        raise UserError(refused)
    return image


def check(image: Any) -> None:
    """Decodes the image from `identify`, only to check it. Raises ValueError when `decode` would.

    Damage to a JPEG shows in its compressed data, so all of them are decoded, but to an eighth of the size and to grey:
    the later steps (inverse transform, upsampling, colours) cannot fail, and take half the time."""
    try:
        if image.format in ("JPEG", "MPO"):
            width, height = image.size
            image.draft("L" if image.mode == "RGB" else None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        check_colors(image)
    except Exception as error:
        raise UserError(describe_decode_error(error)) from error


def find_extension(image: Any) -> str:
    """The usual file extension of the image's format, such as jpg."""
    return ENDINGS_BY_FORMAT.get(image.format, str(image.format).lower())


def rotate_upright(pixels: Image.Image, exif: int) -> Image.Image:
    """The image as RGB, rotated or mirrored by `exif`, the value of EXIF's orientation."""
    rgb = pixels.convert("RGB") if pixels.mode != "RGB" else pixels
    del pixels
    if exif not in ROTATIONS:
        return rgb
    turned = rgb.transpose(ROTATIONS[exif])
    turned.info.clear()  # of the file: whoever asks for the orientation again must not turn it twice
    return turned


def read_orientation(image: Any) -> int:
    """EXIF's, 1 if there is none. To be called after loading: the TIFF decoder rotates the image, and sets it to 1."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):  # the orientation is in the first directory
        image.info["exif"] = exif[:MAX_EXIF]
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF: viewers do not rotate such an image
        return 1


TURN = Image.Transpose
ROTATIONS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE}
ROTATIONS |= {6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}


def describe_decode_error(error: BaseException) -> str:
    """A decoder's error as one short line, the same in each run."""
    if isinstance(error, MemoryError | OverflowError):
        return "too large for the memory"
    text = make_one_line(error)
    if text == "decoder error -9":  # Pillow's number for it
        return "too large for the memory"
    if "BytesIO" in text:  # Pillow's message has the object's address
        text = "not an image of a known format"
    return text[:200]


def decode_plain(data: bytes, image: Any) -> Image.Image | None:
    """`image`, which Pillow has opened and not decoded, by simplejpeg; None if Pillow should decode it."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in SPACES:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, SPACES[image.mode], strict=True)
    except ValueError:
        return None
    return Image.frombuffer(image.mode, image.size, pixels, "raw", image.mode, 0, 1)
