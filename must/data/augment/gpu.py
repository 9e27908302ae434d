"""`--augment-device gpu`: loader processes decode images, and the training device computes the views.

A loader process resizes each image to a square of 1.5 times the views' side, and sends it with its random parameters,
which are the same as for the exact views. The device crops, mirrors and augments whole batches. Views are not bit-equal
to the exact ones: they are interpolated linearly from the square, averaging 2 x 2 points per pixel, and RandAugment is
computed by tensor operations on batches, float32 [N, 3, H, W] with integer values of 0..255, with one argument per
image, float32 [N]. The operations are those of timm on Pillow images; only the interpolation of rotation, shear, shift
and blur differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from must.data.augment.cpu import as_array, crop, fill_color, pixels_of
from must.data.augment.draws import AugmentParams, AugmentSampler, ViewSettings, resized, size_of
from must.data.augment.normalize import channels
from must.data.image.cost import MAX_PIXELS

Fill = tuple[int, int, int]


def apply_ops(images: Tensor, operations: Tensor, arguments: Tensor, fill: Fill, order: Tensor | None = None) -> Tensor:
    """Applies RandAugment's operations to a batch of images, each with its own argument.

    Args:
        operations: int64 [N, L] in host memory, numbers in OPERATION_NAMES, -1 for none; those of a row are applied
            from left to right. The host launches only those that occur, without waiting for the device.
        arguments: float32 [N, L].
        fill: colour of pixels that a rotation or shift brings in.
        order: int64 [N, L] on the device of the images, `operations.argsort(0)`; computed if it is not given.
    """
    images = images.clone()
    order = operations.argsort(dim=0, stable=True).to(images.device) if order is None else order
    for layer in range(operations.shape[1]):
        numbers, counts = operations[:, layer].unique(return_counts=True)
        chunks = order[:, layer].split(counts.tolist())
        for number, chosen in zip(numbers.tolist(), chunks, strict=True):
            if number >= 0:
                result = OPERATIONS[OPERATION_NAMES[number]](images[chosen], arguments[:, layer][chosen], fill)
                images[chosen] = result.round().clamp(0, 255)
    return images


def auto_contrast(x: Tensor, _: Tensor, fill: Fill) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return ((x - torch.where(flat, 0.0, low)) / scale).clamp(0, 255).floor()


def equalize(x: Tensor, _: Tensor, fill: Fill) -> Tensor:
    return v2.equalize(x.to(torch.uint8)).float()


def invert(x: Tensor, _: Tensor, fill: Fill) -> Tensor:
    return 255 - x


def posterize(x: Tensor, bits: Tensor, fill: Fill) -> Tensor:
    step = column(2 ** (8 - bits.clamp(0, 8)))
    return (x / step).floor() * step


def solarize(x: Tensor, threshold: Tensor, fill: Fill) -> Tensor:
    return torch.where(x < column(threshold), x, 255 - x)


def solarize_add(x: Tensor, added: Tensor, fill: Fill) -> Tensor:
    return torch.where(x < 128, (x + column(added)).clamp(max=255), x)


def color(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    return blend(grey(x), x, factor)


def desaturate(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    return blend(grey(x), x, (1 - factor).clamp(0, 1))


def contrast(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    mean = (grey(x).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return blend(mean, x, factor)


def brightness(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    return x * column(factor)


def sharpness(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    """Blends with Pillow's SMOOTH filter, which does not change the border."""
    kernel = torch.ones(3, 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(x, kernel / 13, groups=3)).round()
    return blend(smooth, x, factor)


def blur(x: Tensor, radius: Tensor, fill: Fill) -> Tensor:
    """Gaussian, with one radius per image; 13 taps, rows then columns."""
    N, C, H, W = x.shape
    taps = torch.arange(-6, 7, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (taps / radius.clamp(min=1e-3)[:, None]).square()).softmax(1).repeat_interleave(C, 0)
    rows = F.conv2d(
        F.pad(x, (6, 6, 6, 6), "reflect").view(1, N * C, H + 12, W + 12), kernel[:, None, None], groups=N * C
    )
    return F.conv2d(rows, kernel[:, None, :, None], groups=N * C).view(N, C, H, W)


def affine(rows: Callable[[Tensor, Tensor], list[Tensor | int]]) -> Callable[[Tensor, Tensor, Fill], Tensor]:
    """The operation that maps coordinates of its result to those of the image, both from -1 to 1, by a 2 x 3 matrix.
    `rows` computes the six numbers of it from the image and the argument, each for all images or [N]."""

    def operation(x: Tensor, argument: Tensor, fill: Fill) -> Tensor:
        numbers = rows(x, argument)
        matrix = [n if isinstance(n, Tensor) else torch.full_like(argument, n) for n in numbers]
        grid = F.affine_grid(torch.stack(matrix, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        inside = F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
        return torch.where((grid.abs() <= 1).all(-1)[:, None], inside, channels(fill, x.device))

    return operation


def rotation(x: Tensor, degrees: Tensor) -> list[Tensor | int]:
    angle = -degrees * (math.pi / 180)
    return [angle.cos(), angle.sin(), 0, -angle.sin(), angle.cos(), 0]


def blend(degenerate: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return degenerate + (x - degenerate) * column(factor)


def grey(x: Tensor) -> Tensor:
    """Pillow's conversion to "L", [N, 1, H, W]."""
    red, green, blue = x.unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()[:, None]


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Fill], Tensor]] = {
    "AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert, "Rotate": affine(rotation),
    "Posterize": posterize, "PosterizeIncreasing": posterize, "PosterizeOriginal": posterize, "Solarize": solarize,
    "SolarizeIncreasing": solarize, "SolarizeAdd": solarize_add, "Color": color, "ColorIncreasing": color,
    "Contrast": contrast, "ContrastIncreasing": contrast, "Brightness": brightness, "BrightnessIncreasing": brightness,
    "Sharpness": sharpness, "SharpnessIncreasing": sharpness,
    "ShearX": affine(lambda x, factor: [1, factor, factor, 0, 1, 0]),
    "ShearY": affine(lambda x, factor: [1, 0, 0, factor, 1, factor]),
    "TranslateX": affine(lambda x, pixels: [1, 0, 2 * (pixels / x.shape[3]), 0, 1, 0]),
    "TranslateY": affine(lambda x, pixels: [1, 0, 0, 0, 1, 2 * (pixels / x.shape[2])]),
    "TranslateXRel": affine(lambda x, share: [1, 0, 2 * share, 0, 1, 0]),
    "TranslateYRel": affine(lambda x, share: [1, 0, 0, 0, 1, 2 * share]), "Desaturate": desaturate,
    "GaussianBlur": blur,
}  # fmt: skip
OPERATION_NAMES = tuple(OPERATIONS)


ENLARGED = 1.5  # side of the square, relative to that of a view


class DeviceInputs(NamedTuple):
    """The input of `DeviceViews`: one image, or B images stacked."""

    pixels: Tensor  # uint8 [B, C, C, 3]
    boxes: Tensor  # float32 [B, 2, 4]: x, y, width, height of the weak and strong crop, relative to the image
    flip: Tensor  # bool [B], of the strong view
    operations: Tensor  # int64 [B, L]: numbers in OPERATION_NAMES, -1 for none; stays in host memory
    arguments: Tensor  # float32 [B, L]
    masked: Tensor  # int64 [B, M]
    order: Tensor  # int64 [B, L]: the images sorted by operation

    @classmethod
    def of(cls, *stacked: Tensor) -> DeviceInputs:
        """From the stacked results of `DeviceViews.of_file` for B images."""
        *_, operations, _, _ = stacked
        return cls(*stacked, operations.argsort(dim=0, stable=True))  # type: ignore[call-arg]

    def to(self, device: torch.device) -> DeviceInputs:
        """On the device; `operations` stay on the host, which launches them."""
        return DeviceInputs(*(value.to(device, non_blocking=True) for value in self))._replace(
            operations=self.operations
        )


class DeviceViews:
    """File bytes -> DeviceInputs in a loader process; a batch of those -> weak and strong views on the device."""

    def __init__(self, settings: ViewSettings) -> None:
        self.size, self.padding = settings.preprocess.size, settings.weak_padding
        self.side = math.ceil(self.size * ENLARGED)
        self.fill = fill_color(settings.preprocess.mean)
        self.draws = AugmentSampler(settings)
        self.layers = self.draws.augment.num_layers if self.draws.augment else 0

    def of_file(self, data: bytes, seeds: tuple[int, int, int], max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, ...]:
        """`seeds`: seed, epoch, sample. Raises ValueError: the bytes are no valid image."""
        header, draw = self.draws.of_file(data, seeds, max_pixels)
        operations, arguments = np.full(self.layers, -1), np.zeros(self.layers, np.float32)
        for layer, (name, values) in enumerate(draw.operations):
            operations[layer], arguments[layer] = OPERATION_NAMES.index(name), values[0] if values else 0
        boxes, flip = self.boxes(draw, *size_of(header)), np.asarray(draw.flip)
        pixels, _ = pixels_of(data, header, min(header.size), self.side, max_pixels)
        square = as_array(crop(pixels, 0, 0, pixels.shape[3], pixels.shape[2], self.side))
        return square, boxes, flip, operations, arguments, draw.masked

    def boxes(self, draw: AugmentParams, width: int, height: int) -> np.ndarray:
        (resized_width, resized_height), (weak_x, weak_y) = resized(width, height, self.size), draw.weak
        x, y, w, h = draw.strong
        weak = (weak_x - self.padding) / resized_width, (weak_y - self.padding) / resized_height
        sides = self.size / resized_width, self.size / resized_height
        return np.asarray([[*weak, *sides], [x / width, y / height, w / width, h / height]], np.float32)

    def __call__(self, batch: DeviceInputs) -> tuple[Tensor, Tensor]:
        """Weak and strong views, uint8 [B, H, W, 3], on the device of the batch."""
        channels(self.fill, batch.pixels.device)  # copied with the first batch, whatever its operations
        images = batch.pixels.permute(0, 3, 1, 2).float()
        never = torch.zeros_like(batch.flip)
        weak = self.cut(images, batch.boxes[:, 0], never)
        strong = self.cut(images, batch.boxes[:, 1], batch.flip)
        strong = apply_ops(strong, batch.operations, batch.arguments, self.fill, batch.order)
        return as_uint8(weak), as_uint8(strong)

    def cut(self, images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
        """Crops of images, mirrored where `flip`: integers as float [B, 3, H, W]. Outside is the fill colour."""
        x, y, w, h = boxes.unbind(1)
        zero, mirrored = torch.zeros_like(w), torch.where(flip, -w, w)
        matrix = torch.stack([mirrored, zero, 2 * x + w - 1, zero, h, 2 * y + h - 1], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, [len(images), 3, 2 * self.size, 2 * self.size], align_corners=False)
        views = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
        if self.padding:
            outside = (grid.abs() > 1).any(-1)[:, None]
            views = torch.where(outside, channels(self.fill, views.device), views)
        return F.avg_pool2d(views, 2).round_()


def as_uint8(views: Tensor) -> Tensor:
    return views.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
