"""The views of an image: weak for the teacher, strong and masked for the student, as published.

Views are uint8 pixels; `must.data.augment.normalize` converts a batch of them to the network's input. The random
parameters (must/data/augment/draws.py) and the computation of pixels follow the published implementation, so that the
same seeds give the same views bit for bit (tests/golden/augment.npz)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import NAME_TO_OP

from must.config import TrainConfig
from must.data.augment.draws import AugmentParams, AugmentSampler, Operation, seed_views, upright_size
from must.data.image.cost import MAX_PIXELS
from must.data.image.decode import decode, decode_reduced, identify, orientation
from must.data.image.preprocess import Preprocess, resized

BICUBIC = Image.Resampling.BICUBIC


class TrainViews:
    """Draws (weak [H, W, 3] uint8, strong [H, W, 3] uint8, numbers of the masked patches [M]) of one image.
    `patch`: the side of the model's patches in pixels."""

    def __init__(self, config: TrainConfig, preprocess: Preprocess, patch: int) -> None:
        self.size, self.padding, self.fill = preprocess.size, config.weak_padding, fill_color(preprocess.mean)
        self.draws = AugmentSampler(config, self.size, patch)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draw = self.draws(*image.size)
        return self.weak(image, draw), self.strong(image, draw), draw.masked

    def of_file(
        self, data: bytes, seeds: tuple[int, int, int], max_pixels: int = MAX_PIXELS
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The views of an image file. `seeds`: seed, epoch, sample."""
        image = decode(data, max_pixels)
        seed_views(*seeds)
        return self(image)

    def weak(self, image: Image.Image, draw: AugmentParams) -> np.ndarray:
        """Shorter side to `size`, a border of `padding`, a random crop."""
        (width, height), (x, y), size = resized(*image.size, self.size), draw.weak, self.size
        if self.padding:
            padded = ImageOps.expand(image.resize((width, height), BICUBIC), self.padding, self.fill)
            return np.asarray(padded.crop((x, y, x + size, y + size)))
        # Pillow resizes rows, then columns. Cropping columns between the two steps gives the same pixels.
        rows = image.resize((width, image.height), BICUBIC).crop((x, 0, x + size, image.height))
        return np.asarray(rows.resize((size, height), BICUBIC).crop((0, y, size, y + size)))

    def strong(self, image: Image.Image, draw: AugmentParams) -> np.ndarray:
        """A random resized crop, possibly mirrored, and RandAugment's operations."""
        x, y, w, h = draw.strong
        view = image.crop((x, y, x + w, y + h)).resize((self.size, self.size), BICUBIC)
        if draw.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(apply_ops(view, draw.operations, self.fill, BICUBIC))


def apply_ops(
    image: Image.Image, operations: Sequence[Operation], fill: tuple[int, int, int], filter: Image.Resampling
) -> Image.Image:
    """RandAugment's operations, by timm."""
    for name, arguments in operations:
        function: Any = posterize if name.startswith("Posterize") else NAME_TO_OP[name]
        image = function(image, *arguments, fillcolor=fill, resample=filter)
    return image


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the highest bits; with 0 bits, which newer versions of Pillow refuse, the image is black."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def fill_color(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The colour of pixels that a rotation or shift brings in: the rounded mean of the model's preprocessing."""
    red, green, blue = (round(255 * channel) for channel in mean)
    return red, green, blue


FACTORS = (8, 4, 2)
UPRIGHT = 1


class FastViews(TrainViews):
    """`--views fast`: the random parameters of the exact views, but faster. Not bit-equal to the published views.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if both views allow it, with approximate cosine transforms
    and colour upsampling; images are resized by torch's bicubic filter; rotation, shear and shift interpolate linearly.
    """

    def of_file(
        self, data: bytes, seeds: tuple[int, int, int], max_pixels: int = MAX_PIXELS
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`seeds`: seed, epoch, sample. Views are uint8 [H, W, 3], the numbers of the masked patches [M]."""
        header = identify(data, max_pixels)
        seed_views(*seeds)
        width, height = upright_size(header)
        draw = self.draws(width, height)
        if self.padding:  # for small images, which take little time
            image = decode(data, max_pixels)
            return self.weak(image, draw), self.strong(image, draw), draw.masked
        shortest, factor, pixels = min(*header.size, *draw.strong[2:]), 1, None
        if orientation(header) == UPRIGHT:
            factor = next((factor for factor in FACTORS if shortest >= factor * self.size), 1)
            pixels = decode_reduced(data, header, factor)
        if pixels is None:
            factor, pixels = 1, np.asarray(decode(data, max_pixels))
        planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
        resized_width, resized_height = resized(width, height, self.size)
        scale_x, scale_y = width / resized_width / factor, height / resized_height / factor
        weak_x, weak_y = draw.weak
        weak = crop(planes, weak_x * scale_x, weak_y * scale_y, self.size * scale_x, self.size * scale_y, self.size)
        x, y, strong_width, strong_height = (side / factor for side in draw.strong)
        strong = crop(planes, x, y, strong_width, strong_height, self.size)
        array = as_array(strong.flip(-1) if draw.flip else strong)
        if draw.operations:
            operated = apply_ops(Image.fromarray(array), draw.operations, self.fill, Image.Resampling.BILINEAR)
            array = np.asarray(operated)
        return as_array(weak), array, draw.masked


def crop(pixels: torch.Tensor, x: float, y: float, w: float, h: float, size: int) -> torch.Tensor:
    """The part of an image, to the nearest pixel, at `size` x `size`: uint8 [1, 3, size, size]."""
    start_x, start_y = round(x), round(y)
    part = pixels[:, :, start_y : max(round(y + h), start_y + 1), start_x : max(round(x + w), start_x + 1)]
    part = part.contiguous(memory_format=torch.channels_last)  # torch is slower without this copy
    return F.interpolate(part, (size, size), mode="bicubic", antialias=True)


def as_array(pixels: torch.Tensor) -> np.ndarray:
    """[1, 3, H, W] -> [H, W, 3]"""
    return pixels[0].permute(1, 2, 0).contiguous().numpy()
