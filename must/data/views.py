"""The views of an image: weak for the teacher, strong and masked for the student, and the evaluation view.

Views are uint8 pixels; `normalize` makes the network's input of a whole batch at once, on the device. The three random
generators and the order in which they are used are those of the published implementation, so that the same seeds give
the same views bit for bit (tests/golden/augment.npz).
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_ops, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from must.data.eval_view import Preprocess


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn; the defaults are the published ones."""

    preprocess: Preprocess = field(default_factory=Preprocess)
    patch_size: int = 16  # of the model, pixels
    mask_patch_size: int = 32  # of a masked cell, pixels
    mask_ratio: float = 0.3
    weak_padding: int = 0  # pixels
    strong_scale: tuple[float, float] = (0.3, 1.0)  # area
    flip: float = 0.5
    randaugment: str = "rand-m9-mstd0.5-inc1"
    randaugment_ops: tuple[str, ...] = ()


class TrainViews:
    """Draws (weak [H, W, 3] uint8, strong [H, W, 3] uint8, numbers of the masked patches [M]) of one image.

    Raises:
        ValueError: mask cells do not fit the model's patches, or RandAugment's settings are unknown.
    """

    def __init__(self, settings: ViewSettings) -> None:
        size, fill = settings.preprocess.size, fill_color(settings.preprocess.mean)
        bicubic = transforms.InterpolationMode.BICUBIC
        self.weak = transforms.Compose(
            [
                transforms.Resize(size, interpolation=bicubic),
                transforms.RandomCrop(size, padding=settings.weak_padding or None, fill=fill),
            ]
        )
        steps = [
            RandomResizedCropAndInterpolation(size, scale=settings.strong_scale, interpolation="bicubic"),
            transforms.RandomHorizontalFlip(settings.flip),
        ]
        if settings.randaugment:
            steps.append(randaugment(settings.randaugment, settings.randaugment_ops, size, fill))
        self.strong = transforms.Compose(steps)
        self.mask = PatchMask(size, settings.patch_size, settings.mask_patch_size, settings.mask_ratio)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weak = np.asarray(self.weak(image))
        strong = np.asarray(self.strong(image))
        return weak, strong, self.mask()


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


def randaugment(config: str, names: tuple[str, ...], size: int, fill: tuple[int, int, int]):
    hparams = {"translate_const": int(size * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    try:
        rand_augment_ops(transforms=list(names) or None)
        augment = rand_augment_transform(config, hparams, transforms=list(names) or None)
    except (AssertionError, KeyError, ValueError) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else "not understood"
        raise ValueError(
            f"--randaugment {config} / --randaugment-ops {','.join(names)}: {what}; "
            "expected timm's notation, such as rand-m9-mstd0.5-inc1, and operations such as Rotate,ShearX"
        ) from None
    for operation in augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return augment


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the highest bits; none at the highest magnitude, which is black (newer Pillows refuse 0 bits)."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def seed_views(seed: int, epoch: int, sample: int) -> None:
    """Seeds the three generators of the views: a sample's views depend on nothing but (seed, epoch, sample)."""
    seed_generators(int.from_bytes(hashlib.blake2b(f"{seed},{epoch},{sample}".encode(), digest_size=4).digest()))


def seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fill_color(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The colour of pixels that a rotation or shift brings in: the rounded mean of the model's preprocessing."""
    red, green, blue = (round(255 * channel) for channel in mean)
    return red, green, blue


def normalize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], on the device of `pixels`."""
    mean = torch.tensor(preprocess.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=pixels.device).view(1, 3, 1, 1)
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std)
