"""From a loaded image to a model's pixels: RGB, shorter side to the input size, centre crop. Without torch, so that
`must evaluate`, `must predict` and the server use the same pixels.

RGB is made strip by strip: temporary copies may take eight times the memory of the result."""

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from PIL import Image, ImageCms

from must.base.errors import UserError
from must.base.text import abbreviate

STRIP = 1 << 18  # pixels converted at once
CHAIN = b"mpet"  # in a profile: any number of processing steps, each of which is computed for 280,000 colours
EDGE = 0.1  # percent of the pixels that may be outside of a picture's levels at each end, such as hot ones
SAMPLE = 1 << 17  # pixels that levels are found in
DARK, BRIGHT = 12, 243  # of 255: a picture without a brighter, or a darker, value is almost black, or white
LARGEST_INPUT = 2048  # pixels per side of a model's input
SMALLEST, FARTHEST = 1e-6, 1e6  # limits on the deviation, which is divided by, and on the mean
LARGEST_LEVEL = 1e30
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


Levels = tuple[float, ...]
"""(black, white): the values of pictures with more than 8 bits that become 0 and 255; (): by the rule in `Scale`."""


def to_rgb(image: Any, levels: Levels = ()) -> Image.Image:
    """A loaded image as RGB, transparent ones on white."""
    if is_deep(image):
        return by_strips(image, Scale(image, levels))
    if is_transparent(image):
        return by_strips(image, paint_on_white)
    if image.mode == "CMYK":
        return convert_cmyk(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def check_colors(image: Any) -> None:
    """Raises as `to_rgb`, in less time and memory: it can only fail at the first strip or at the range of values."""
    if is_deep(image):
        Scale(image)
    elif image.mode not in ("RGB", "L", "P", "CMYK"):  # converting these always succeeds
        to_rgb(next(strips(image))[1])


def find_levels(image: Any) -> Levels:
    """The darkest and the brightest value of a loaded image with more than 8 bits, without EDGE at both ends; () for
    others."""
    if not is_deep(image):
        return ()
    step = -(-image.width * image.height // SAMPLE)
    values = np.concatenate([np.asarray(strip).ravel()[::step] for _, strip in strips(image)])
    low, high = np.percentile(values, (EDGE, 100 - EDGE), method="nearest")
    return float(low), float(high)


def find_tone(image: Any) -> str:
    """ "black" or "white" if a loaded image of 8 bits is almost that, else ""; by 64 x 64 of its pixels."""
    small = image.resize((min(64, image.width), min(64, image.height)), Image.Resampling.NEAREST)
    grey: Any = small if small.mode == "L" and not is_transparent(small) else to_rgb(small).convert("L")
    low, high = grey.getextrema()
    return "black" if high <= DARK else "white" if low >= BRIGHT else ""


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


def paint_on_white(image: Any) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def convert_cmyk(image: Any) -> Image.Image:
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
    """A strip of grey values of 16 or 32 bits, or floats -> RGB, by the levels that are given.

    Without levels 16-bit values are divided by 257. Files of 32 bits or floats do not define white: floats within 0..1
    are scaled by 255, other values from the darkest to the brightest one. The value that a PNG declares transparent
    becomes white."""

    def __init__(self, image: Any, levels: Levels = ()) -> None:
        self.levels = levels
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
        if self.levels:
            black, white = self.levels
            scaled = np.clip((values.astype(np.float64) - black) * (255.0 / (white - black)), 0, 255)
        elif values.dtype.kind == "f" and self.low >= 0 and self.high <= 1:
            scaled = values * 255.0
        elif values.dtype.kind != "f" and self.low >= 0 and self.high <= 65535:
            scaled = values.astype(np.float64) / 257.0
        else:
            scaled = (values.astype(np.float64) - self.low) * (255.0 / max(self.high - self.low, 1e-12))
        grey = np.rint(scaled).astype(np.uint8)
        if isinstance(self.transparent, int):
            grey[values == self.transparent] = 255
        return Image.fromarray(grey).convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """A model's input: size in pixels, mean and standard deviation of channels in 0..1, resize filter and mode, and the
    levels of the pictures that it was adapted to."""

    size: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    levels: Levels = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Reads open_clip's preprocess_cfg or that of a bundle; other keys are ignored."""
        if not isinstance(values, dict):
            raise UserError("the model's preprocessing is no mapping of names to values")
        size = values.get("size", 224)
        if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
            size = size[0]
        if type(size) is not int or not 1 <= size <= LARGEST_INPUT:
            raise UserError(
                f"the model's input of size {abbreviate(size)}: only squares of 1 to {LARGEST_INPUT} are supported"
            )
        preprocess = cls(
            size=size,
            mean=check_three_numbers(values.get("mean") or CLIP_MEAN, -FARTHEST),
            std=check_three_numbers(values.get("std") or CLIP_STD, SMALLEST),
            interpolation=values.get("interpolation") or "bicubic",
            resize_mode=values.get("resize_mode") or "shortest",
            levels=check_levels(values.get("levels") or ()),
        )
        if str(preprocess.interpolation) not in FILTERS or preprocess.resize_mode not in ("shortest", "squash"):
            raise UserError(
                f"the model's preprocessing ({abbreviate(preprocess.interpolation)}, "
                f"{abbreviate(preprocess.resize_mode)}) is not supported"
            )
        return preprocess

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std), "levels": list(self.levels)}
        return {name: value for name, value in values.items() if name != "levels" or value}


def set_levels(preprocess: Preprocess, levels: Levels) -> Preprocess:
    """With these levels, unless it has some: a model keeps those that it was adapted with."""
    return preprocess if preprocess.levels else replace(preprocess, levels=levels)


def check_levels(values: Any) -> Levels:
    """Two finite numbers, the first one smaller; or none."""
    levels = tuple(values) if isinstance(values, list | tuple) else (0,)
    valid = all(type(value) in (int, float) and abs(value) < LARGEST_LEVEL for value in levels)
    if levels and not (valid and len(levels) == 2 and levels[0] < levels[1]):
        raise UserError("levels must be two numbers, black and white, the first one smaller")
    return levels


def check_three_numbers(values: Any, smallest: float) -> tuple[float, ...]:
    """A number for each of the three channels, from `smallest` to FARTHEST."""
    numbers = values if isinstance(values, list | tuple) else ()
    valid = all(type(value) in (int, float) and smallest <= value <= FARTHEST for value in numbers)
    if len(numbers) != 3 or not valid:
        raise UserError(
            "the model's preprocessing has a mean or deviation out of range: expected are three numbers, each from "
            f"{smallest:g} to {FARTHEST:g}"
        )
    return tuple(numbers)


def describe_preprocess(preprocess: Preprocess) -> str:
    """The steps from a decoded image to the float input, in words."""
    size = preprocess.size
    if preprocess.resize_mode == "squash":
        resize = f"resize to {size} x {size}"
    else:
        resize = f"resize the shorter side to {size} (longer side rounded down), centre crop {size} x {size}"
    black, white = preprocess.levels or (0, 0)
    scale = f" (values of more than 8 bits: {black:g} becomes 0, {white:g} 255)" if preprocess.levels else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return (
        f"Turn by the EXIF orientation; RGB{scale}; {resize}, {preprocess.interpolation} with antialiasing (Pillow) on "
        f"8-bit pixels; divide by 255; subtract ({mean}); divide by ({std}); order N, C, H, W"
    )


class EvalView:
    """RGB image -> uint8 [size, size, 3], the pixels that torchvision's Resize and CenterCrop give."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self.size = preprocess.size
        self.filter = FILTERS[preprocess.interpolation]
        self.squash = preprocess.resize_mode == "squash"

    def __call__(self, image: Image.Image) -> np.ndarray:
        width, height = image.size
        if self.squash:
            return np.asarray(resize(image, self.size, self.size, self.filter))
        new_width, new_height = find_resized_size(width, height, self.size)
        image = resize(image, new_width, new_height, self.filter)
        x, y = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        return np.asarray(image.crop((x, y, x + self.size, y + self.size)))


def find_resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after torchvision's Resize of the shorter side to `size`."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def resize(image: Image.Image, width: int, height: int, filter: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), filter)


def normalize_pixels(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: the same numbers as `must.data.augment`."""
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    images /= np.float32(255)
    images -= np.asarray(preprocess.mean, dtype=np.float32).reshape(1, 3, 1, 1)
    images /= np.asarray(preprocess.std, dtype=np.float32).reshape(1, 3, 1, 1)
    return images
