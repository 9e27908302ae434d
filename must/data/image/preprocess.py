"""The preprocessing of images for a model: shorter side to the input size, centre crop. Without torch, so that
`must evaluate`, `must predict` and the server use the same pixels."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from must.base.errors import UserError
from must.base.text import brief

LARGEST_INPUT = 2048  # pixels per side of a model's input
SMALLEST, FARTHEST = 1e-6, 1e6  # limits on the deviation, which is divided by, and on the mean
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """A model's input: size in pixels, mean and standard deviation of channels in 0..1, resize filter and mode."""

    size: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

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
                f"the model's input of size {brief(size)}: only squares of 1 to {LARGEST_INPUT} are supported"
            )
        preprocess = cls(
            size=size,
            mean=three_numbers(values.get("mean") or CLIP_MEAN, -FARTHEST),
            std=three_numbers(values.get("std") or CLIP_STD, SMALLEST),
            interpolation=values.get("interpolation") or "bicubic",
            resize_mode=values.get("resize_mode") or "shortest",
        )
        if str(preprocess.interpolation) not in FILTERS or preprocess.resize_mode not in ("shortest", "squash"):
            raise UserError(
                f"the model's preprocessing ({brief(preprocess.interpolation)}, {brief(preprocess.resize_mode)}) "
                "is not supported"
            )
        return preprocess

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def three_numbers(values: Any, smallest: float) -> tuple[float, ...]:
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
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return (
        f"Turn by the EXIF orientation; RGB; {resize}, {preprocess.interpolation} with antialiasing (Pillow) on 8-bit "
        f"pixels; divide by 255; subtract ({mean}); divide by ({std}); order N, C, H, W"
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
        new_width, new_height = resized(width, height, self.size)
        image = resize(image, new_width, new_height, self.filter)
        x, y = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        return np.asarray(image.crop((x, y, x + self.size, y + self.size)))


def resized(width: int, height: int, size: int) -> tuple[int, int]:
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
