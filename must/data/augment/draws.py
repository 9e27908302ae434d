"""The random parameters of an image's views (crop, flip, RandAugment, mask), separate from computing the pixels.

So the same (seed, epoch, sample) gives the same crops, flips, operations and masks in every implementation of the
views. The three random generators and the order in which they are used are those of the published implementation."""

import hashlib
import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import auto_augment
from timm.data import transforms as timm_transforms
from timm.data.auto_augment import rand_augment_ops, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from must.base.errors import UserError
from must.config import TrainConfig
from must.data.image.preprocess import resized

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
        self.augment = randaugment(operations, names, size) if operations else None

    def __call__(self, width: int, height: int) -> AugmentParams:
        config = self.config
        wide, high = (side + 2 * config.weak_padding for side in resized(width, height, self.size))
        weak_y, weak_x, _, _ = transforms.RandomCrop.get_params(no_pixels(high, wide), (self.size, self.size))
        with timm_generator():
            y, x, h, w = RandomResizedCropAndInterpolation.get_params(
                no_pixels(height, width), config.strong_scale, RATIO
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
        self.masked_patches = self.masked_cells * self.scale**2
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


def randaugment(config: str, names: list[str], size: int) -> Any:
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


def no_pixels(height: int, width: int) -> torch.Tensor:
    """An image for functions that only use its size."""
    return torch.empty(1).expand(3, height, width)


def seed_views(seed: int, epoch: int, sample: int) -> None:
    """Seeds the three generators of the views: a sample's views depend only on (seed, epoch, sample)."""
    seed_generators(int.from_bytes(hashlib.blake2b(f"{seed},{epoch},{sample}".encode(), digest_size=4).digest()))


def seed_generators(seed: int) -> None:
    GENERATOR.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed, without its 0.2 ms for other devices
