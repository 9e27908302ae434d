"""The views of an image: weak for the teacher, strong and masked for the student, as published.

Views are uint8 pixels; `must.data.augment.normalize` converts a batch of them to the network's input. The random
parameters (must/data/augment/draws.py) and the computation of pixels follow the published implementation, so that the
same seeds give the same views bit for bit (tests/golden/augment.npz)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.auto_augment import NAME_TO_OP

from must.config import TrainConfig
from must.data.augment.draws import AugmentParams, AugmentSampler, Operation, seed_views
from must.data.image.cost import MAX_PIXELS
from must.data.image.decode import decode
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
        return np.asarray(apply_ops(view, draw.operations, self.fill))


def apply_ops(image: Image.Image, operations: Sequence[Operation], fill: tuple[int, int, int]) -> Image.Image:
    """RandAugment's operations, by timm."""
    for name, arguments in operations:
        function: Any = posterize if name.startswith("Posterize") else NAME_TO_OP[name]
        image = function(image, *arguments, fillcolor=fill, resample=BICUBIC)
    return image


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the highest bits; with 0 bits, which newer versions of Pillow refuse, the image is black."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def fill_color(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The colour of pixels that a rotation or shift brings in: the rounded mean of the model's preprocessing."""
    red, green, blue = (round(255 * channel) for channel in mean)
    return red, green, blue
