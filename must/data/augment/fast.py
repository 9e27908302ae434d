"""`--views fast`: the same draws as the exact views, by faster arithmetic. Not bit-equal to the published views.

What differs: JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where neither view needs more, with approximate
cosine transforms and colour upsampling; images are resized by torch's vectorised bicubic filter; rotation, shear and
shift interpolate linearly. Draws, and so crops, flips, operations and masks, are those of the exact views.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from must.data.augment.draws import AugmentParams, resized, size_of
from must.data.augment.exact import TrainViews, apply_ops
from must.data.image.cost import MAX_PIXELS
from must.data.image.decode import decode, orientation
from must.data.image.jpeg import decode_reduced

FACTORS = (8, 4, 2)
UPRIGHT = 1


class FastViews(TrainViews):
    """File bytes -> the two views and the mask. Raises ValueError: the bytes are no whole image."""

    def of_file(
        self, data: bytes, seeds: tuple[int, int, int], max_pixels: int = MAX_PIXELS
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`seeds`: seed, epoch, sample. Views are uint8 [H, W, 3], the numbers of the masked patches [M]."""
        header, draw = self.draws.of_file(data, seeds, max_pixels)
        width, height = size_of(header)
        if self.padding:  # for small images, which cost little
            image = decode(data, max_pixels)
            return self.weak(image, draw), self.strong(image, draw), draw.masked
        pixels, scale = pixels_of(data, header, min(*header.size, *draw.strong[2:]), self.size, max_pixels)
        return self.fast_weak(pixels, scale, width, height, draw), self.fast_strong(pixels, scale, draw), draw.masked

    def fast_weak(self, pixels: torch.Tensor, scale: int, width: int, height: int, draw: AugmentParams) -> np.ndarray:
        (resized_width, resized_height), (left, top) = resized(width, height, self.size), draw.weak
        x, y = width / resized_width / scale, height / resized_height / scale
        return as_array(crop(pixels, left * x, top * y, self.size * x, self.size * y, self.size))

    def fast_strong(self, pixels: torch.Tensor, scale: int, draw: AugmentParams) -> np.ndarray:
        x, y, w, h = (side / scale for side in draw.strong)
        view = crop(pixels, x, y, w, h, self.size)
        array = as_array(view.flip(-1) if draw.flip else view)
        if not draw.operations:
            return array
        return np.asarray(apply_ops(Image.fromarray(array), draw.operations, self.fill, Image.Resampling.BILINEAR))


def pixels_of(data: bytes, header: Any, shortest: int, side: int, max_pixels: int) -> tuple[torch.Tensor, int]:
    """uint8 [1, 3, H, W], and by what it is smaller than the file's picture: `shortest` of its pixels stay `side`."""
    if orientation(header) == UPRIGHT:
        factor = next((factor for factor in FACTORS if shortest >= factor * side), 1)
        reduced = decode_reduced(data, header, factor)
        if reduced is not None:
            return as_tensor(reduced), factor
    return as_tensor(np.asarray(decode(data, max_pixels))), 1


def crop(pixels: torch.Tensor, x: float, y: float, w: float, h: float, size: int) -> torch.Tensor:
    """The part of an image, to the nearest pixel, at `size` x `size`: uint8 [1, 3, size, size]."""
    left, top, right, bottom = round(x), round(y), max(round(x + w), round(x) + 1), max(round(y + h), round(y) + 1)
    part = pixels[:, :, top:bottom, left:right]
    part = part.contiguous(memory_format=torch.channels_last)  # without this copy torch takes a slower way
    return F.interpolate(part, (size, size), mode="bicubic", antialias=True)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, 3] -> [1, 3, H, W] of the same memory, which torch knows as channels last."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]


def as_array(pixels: torch.Tensor) -> np.ndarray:
    """[1, 3, H, W] -> [H, W, 3]"""
    return pixels[0].permute(1, 2, 0).contiguous().numpy()
