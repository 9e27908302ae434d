"""The views of an image: weak for the teacher, strong and masked for the student, as published.

What is random in a view (crop, flip, RandAugment, mask) is drawn by `AugmentSampler` from (seed, epoch, sample), apart
from the computation of its pixels, so that every implementation of the views gets the same. The three generators, the
order of their use and the pixels are those of the published implementation: the same seeds give the same views, bit for
bit (tests/golden/augment.npz). Views are uint8 pixels; `normalize` converts a batch of them on the device."""

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data import transforms as timm_transforms
from timm.data.auto_augment import NAME_TO_OP, rand_augment_ops, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from must.base.errors import UserError
from must.config import TrainConfig
from must.data.image.decode import decode
from must.data.image.limits import MAX_PIXELS
from must.data.image.preprocess import Preprocess, find_resized_size


def normalize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], on the device of `pixels`."""
    mean, std = (copy_channels(values, pixels.device) for values in (preprocess.mean, preprocess.std))
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=64)
def copy_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number per channel, float32 [1, 3, 1, 1], copied to the device once, as the host waits for the copy."""
    with torch.inference_mode(False):  # the first caller may be an evaluation
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


GENERATOR = random.Random()
RATIO = (3 / 4, 4 / 3)  # smallest and largest width / height of the strong crop


class Operation(NamedTuple):
    """One of RandAugment: timm's name and arguments, such as ("Rotate", (26.1,))."""

    name: str
    arguments: tuple[float, ...]


@dataclass(frozen=True)
class AugmentParams:
    """All random parameters of one image's two views. Boxes are (x, y, width, height)."""

    weak: tuple[int, int]  # x, y of the crop, in the image resized to the model's input and padded
    strong: tuple[int, int, int, int]  # the crop, in the original image
    flip: bool  # the strong view is mirrored
    operations: tuple[Operation, ...]  # RandAugment's, in this order
    masked: np.ndarray  # int64 [M], numbers of the masked patches


class AugmentSampler:
    """Image size -> AugmentParams, from the generators that `seed_views` has set. `size`: of the model's input,
    `patch`: of its patches, in pixels."""

    def __init__(self, config: TrainConfig, size: int, patch: int) -> None:
        self.config, self.size = config, size
        self.mask = PatchMask(size, patch, config.mask_patch_size, config.mask_ratio)
        operations, names = config.randaugment, config.randaugment_ops
        self.augment = build_randaugment(operations, names, size) if operations else None

    def __call__(self, width: int, height: int) -> AugmentParams:
        config = self.config
        wide, high = (side + 2 * config.weak_padding for side in find_resized_size(width, height, self.size))
        weak_y, weak_x, _, _ = transforms.RandomCrop.get_params(make_empty_image(high, wide), (self.size, self.size))
        with timm_generator():
            y, x, h, w = RandomResizedCropAndInterpolation.get_params(
                make_empty_image(height, width), config.strong_scale, RATIO
            )
            flip = bool(torch.rand(1) < config.flip)
            operations = self.augment([]) if self.augment else []
        return AugmentParams((weak_x, weak_y), (x, y, w, h), flip, tuple(operations), self.mask())


@contextmanager
def timm_generator() -> Iterator[None]:
    """Makes timm use GENERATOR. By default it uses the module `random`, as other threads of the process may do, such as
    those that repeat a bucket's failed requests. A separate generator gives the same numbers for the same seed."""
    modules: tuple[Any, ...] = (auto_augment, timm_transforms)
    before = [module.random for module in modules]
    for module in modules:
        module.random = GENERATOR
    try:
        yield
    finally:
        for module, generator in zip(modules, before, strict=True):
            module.random = generator


class PatchMask:
    """Draws which patches are masked: ceil(cells x ratio) cells of `cell` pixels, the same number for every image."""

    def __init__(self, image: int, patch: int, cell: int, ratio: float) -> None:
        if cell % patch or image % cell:
            raise UserError(
                f"--mask-patch-size {cell}: must be a multiple of the model's patch ({patch} px) that divides its "
                f"image size ({image} px)"
            )
        self.side, self.scale = image // cell, cell // patch
        self.cells = self.side**2
        self.masked_cells = math.ceil(self.cells * ratio)
        if self.masked_cells >= self.cells:
            raise UserError(f"--mask-ratio {ratio:g}: would mask all of the image's {self.cells} cells")

    def __call__(self) -> np.ndarray:
        """Numbers of the masked patches, ascending: int64 [M]."""
        mask = np.zeros(self.cells, dtype=bool)
        mask[np.random.permutation(self.cells)[: self.masked_cells]] = True
        mask = mask.reshape(self.side, self.side).repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        return np.flatnonzero(mask)


NOTATION = re.compile(r"rand(-(m|mstd|mmax|p|n|w|inc|t)\d+(\.\d+)?)*")
MOST_LAYERS = 100  # operations on an image


def build_randaugment(config: str, names: list[str], size: int) -> Any:
    """timm's RandAugment, whose operations are recorded, not applied: list of Operation -> longer list of Operation."""
    try:
        if not NOTATION.fullmatch(config):  # timm ignores a section without digits
            raise ValueError("not understood")
        rand_augment_ops(transforms=names or None)
        hparams = {"translate_const": int(size * 0.45), "img_mean": (0, 0, 0)}
        augment = rand_augment_transform(config, hparams, transforms=names or None)
        if not all(op.magnitude <= 10 and op.prob <= 1 for op in augment.ops) or augment.num_layers > MOST_LAYERS:
            raise ValueError(f"m is at most 10, p 1, and n {MOST_LAYERS}")
    except (AssertionError, KeyError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}" if str(error) else "not understood"
        raise UserError(
            f"--randaugment {config} / --randaugment-ops {','.join(names)}: {problem}; "
            "expected timm's notation, such as rand-m9-mstd0.5-inc1, and operations such as Rotate,ShearX"
        ) from None
    for operation in augment.ops:
        operation.aug_fn = partial(record_op, operation.name)
    return augment


def record_op(name: str, done: list[Operation], *arguments: float, **_: object) -> list[Operation]:
    if name == "GaussianBlurRand":  # the only one with another random number
        return [*done, Operation("GaussianBlur", (GENERATOR.uniform(0.1, 2.0 * arguments[0]),))]
    return [*done, Operation(name, arguments)]


def make_empty_image(height: int, width: int) -> torch.Tensor:
    """An image for functions that only use its size."""
    return torch.empty(1).expand(3, height, width)


def seed_views(seed: int, epoch: int, sample: int) -> None:
    """Seeds the three generators of the views: a sample's views depend only on (seed, epoch, sample)."""
    seed_generators(int.from_bytes(hashlib.blake2b(f"{seed},{epoch},{sample}".encode(), digest_size=4).digest()))


def seed_generators(seed: int) -> None:
    GENERATOR.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed, without its 0.2 ms for other devices


BICUBIC = Image.Resampling.BICUBIC


class TrainViews:
    """Draws (weak [H, W, 3] uint8, strong [H, W, 3] uint8, numbers of the masked patches [M]) of one image.
    `patch`: the side of the model's patches in pixels."""

    def __init__(self, config: TrainConfig, preprocess: Preprocess, patch: int) -> None:
        self.levels = preprocess.levels
        self.size, self.padding, self.fill = preprocess.size, config.weak_padding, fill_color(preprocess.mean)
        self.draws = AugmentSampler(config, self.size, patch)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draw = self.draws(*image.size)
        return self.weak(image, draw), self.strong(image, draw), draw.masked

    def of_file(
        self, data: bytes, seeds: tuple[int, int, int], max_pixels: int = MAX_PIXELS
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The views of an image file. `seeds`: seed, epoch, sample."""
        image = decode(data, max_pixels, levels=self.levels)
        seed_views(*seeds)
        return self(image)

    def weak(self, image: Image.Image, draw: AugmentParams) -> np.ndarray:
        """Shorter side to `size`, a border of `padding`, a random crop."""
        (width, height), (x, y), size = find_resized_size(*image.size, self.size), draw.weak, self.size
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
