"""The random parameters of an image's views (crop, flip, RandAugment, mask), apart from computing the pixels.

So the same (seed, epoch, sample) gives the same crops, flips, operations and masks in every implementation of the
views. The three random generators and the order in which they are used are those of the published implementation.
"""

from __future__ import annotations

import hashlib
import math
import random
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

GENERATOR = random.Random()
RATIO = (3 / 4, 4 / 3)  # smallest and largest width / height of the strong crop


class Operation(NamedTuple):
    """One of RandAugment: timm's name and arguments, such as ("Rotate", (26.1,))."""

    name: str
    arguments: tuple[float, ...]


@dataclass(frozen=True)
class AugmentParams:
    """All randomness of one image's two views. Boxes are (left, top, width, height)."""

    weak: tuple[int, int]  # left, top of the crop, in the image resized to the model's input and padded
    strong: tuple[int, int, int, int]  # the crop, in the image itself
    flip: bool  # the strong view is mirrored
    operations: tuple[Operation, ...]  # RandAugment's, in this order
    masked: np.ndarray  # int64 [M], numbers of the masked patches


class AugmentSampler:
    """Image size -> Draw, from the generators that `seed_views` has set.

    Args:
        size: side of the views, pixels.
        padding: of the weak view.
        scale: smallest and largest area of the strong crop.
        flip: probability.
        config, names: RandAugment's settings and operations; no operations if `config` is empty.
        mask: draws the masked patches.
    """

    def __init__(
        self,
        size: int,
        padding: int,
        scale: tuple[float, float],
        flip: float,
        config: str,
        names: tuple[str, ...],
        mask: PatchMask,
    ) -> None:
        self.size, self.padding, self.scale, self.flip, self.mask = size, padding, scale, flip, mask
        self.augment = randaugment(config, names, size) if config else None

    def __call__(self, width: int, height: int) -> AugmentParams:
        resized_width, resized_height = resized(width, height, self.size)
        padded = no_pixels(resized_height + 2 * self.padding, resized_width + 2 * self.padding)
        top, left, _, _ = transforms.RandomCrop.get_params(padded, (self.size, self.size))
        with timm_draws_from_ours():
            y, x, h, w = RandomResizedCropAndInterpolation.get_params(no_pixels(height, width), self.scale, RATIO)
            flip = bool(torch.rand(1) < self.flip)
            operations = self.augment([]) if self.augment else []
        return AugmentParams((left, top), (x, y, w, h), flip, tuple(operations), self.mask())


@contextmanager
def timm_draws_from_ours() -> Iterator[None]:
    """timm draws from the module `random`, and so do other threads of a process: those that repeat a bucket's failed
    requests, for one. A generator of our own, with the same numbers for the same seed, keeps them apart."""
    before = auto_augment.random, timm_transforms.random
    auto_augment.random = timm_transforms.random = GENERATOR  # type: ignore[assignment]
    try:
        yield
    finally:
        auto_augment.random, timm_transforms.random = before


class PatchMask:
    """Draws which patches are masked: ceil(cells x ratio) cells of `cell` pixels, the same number for every image."""

    def __init__(self, image: int, patch: int, cell: int, ratio: float) -> None:
        if cell % patch or image % cell:
            raise ValueError(
                f"--mask-patch-size {cell}: must be a multiple of the model's patch ({patch} px) that divides its "
                f"image size ({image} px)"
            )
        self.side, self.scale = image // cell, cell // patch
        self.cells = self.side**2
        self.masked_cells = math.ceil(self.cells * ratio)
        self.masked_patches = self.masked_cells * self.scale**2
        if self.masked_cells >= self.cells:
            raise ValueError(f"--mask-ratio {ratio:g}: would mask all of the image's {self.cells} cells")

    def __call__(self) -> np.ndarray:
        """Numbers of the masked patches, ascending: int64 [M]."""
        mask = np.zeros(self.cells, dtype=bool)
        mask[np.random.permutation(self.cells)[: self.masked_cells]] = True
        mask = mask.reshape(self.side, self.side).repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        return np.flatnonzero(mask)


def randaugment(config: str, names: tuple[str, ...], size: int) -> Any:
    """timm's RandAugment, whose operations note what they would do: list of Operation -> longer list of Operation."""
    try:
        rand_augment_ops(transforms=list(names) or None)
        hparams = {"translate_const": int(size * 0.45), "img_mean": (0, 0, 0)}
        augment = rand_augment_transform(config, hparams, transforms=list(names) or None)
    except (AssertionError, KeyError, ValueError) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else "not understood"
        raise ValueError(
            f"--randaugment {config} / --randaugment-ops {','.join(names)}: {what}; "
            "expected timm's notation, such as rand-m9-mstd0.5-inc1, and operations such as Rotate,ShearX"
        ) from None
    for operation in augment.ops:
        operation.aug_fn = partial(record_op, operation.name)
    return augment


def record_op(name: str, done: list[Operation], *arguments: float, **_: object) -> list[Operation]:
    if name == "GaussianBlurRand":  # the only one that draws once more
        return [*done, Operation("GaussianBlur", (GENERATOR.uniform(0.1, 2.0 * arguments[0]),))]
    return [*done, Operation(name, arguments)]


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after torchvision's Resize of the shorter side to `size`."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def no_pixels(height: int, width: int) -> torch.Tensor:
    """An image for functions that only ask for its size."""
    return torch.empty(1).expand(3, height, width)


def seed_views(seed: int, epoch: int, sample: int) -> None:
    """Seeds the three generators of the views: a sample's views depend on nothing but (seed, epoch, sample)."""
    seed_generators(int.from_bytes(hashlib.blake2b(f"{seed},{epoch},{sample}".encode(), digest_size=4).digest()))


def seed_generators(seed: int) -> None:
    GENERATOR.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed, without its 0.2 ms for other devices
