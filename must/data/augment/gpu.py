"""`--augment-device gpu`: loader processes decode, the device that trains computes the views.

A loader process sends each image squeezed into a square of 1.5 times the views' side, and what was drawn for it, which
is the same as for the exact views. The device crops, mirrors and augments whole batches. Views are not bit-equal to
the exact ones: they are interpolated linearly from the square, averaging 2 x 2 points a pixel, and RandAugment is
computed by tensor operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.data.augment.draws import AugmentParams, AugmentSampler, ViewSettings, resized, size_of
from must.data.augment.exact import fill_color
from must.data.augment.fast import as_array, crop, pixels_of
from must.data.augment.gpu_ops import NAMES, apply_ops
from must.data.augment.normalize import channels
from must.data.image.cost import MAX_PIXELS

ENLARGED = 1.5  # side of the square, in sides of a view


class DeviceInputs(NamedTuple):
    """What `DeviceViews` makes views of: one image, or B images stacked."""

    pixels: Tensor  # uint8 [B, C, C, 3]
    boxes: Tensor  # float32 [B, 2, 4]: left, top, width, height of the weak and strong crop, in sides of the image
    flip: Tensor  # bool [B], of the strong view
    operations: Tensor  # int64 [B, L]: numbers in gpu_ops.NAMES, -1 for none; stays in host memory
    arguments: Tensor  # float32 [B, L]
    masked: Tensor  # int64 [B, M]
    order: Tensor  # int64 [B, L]: the images sorted by operation

    @classmethod
    def of(cls, *stacked: Tensor) -> DeviceInputs:
        """What `DeviceViews.of_file` gives, of B images stacked."""
        *_, operations, _, _ = stacked
        return cls(*stacked, operations.argsort(dim=0, stable=True))  # type: ignore[call-arg]

    def to(self, device: torch.device) -> DeviceInputs:
        """On the device; the operations stay, as the host chooses by them what it launches."""
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
        """`seeds`: seed, epoch, sample. Raises ValueError: the bytes are no whole image."""
        header, draw = self.draws.of_file(data, seeds, max_pixels)
        operations, arguments = np.full(self.layers, -1), np.zeros(self.layers, np.float32)
        for place, (name, values) in enumerate(draw.operations):
            operations[place], arguments[place] = NAMES.index(name), values[0] if values else 0
        boxes, flip = self.boxes(draw, *size_of(header)), np.asarray(draw.flip)
        whole, _ = pixels_of(data, header, min(header.size), self.side, max_pixels)
        square = as_array(crop(whole, 0, 0, whole.shape[3], whole.shape[2], self.side))
        return square, boxes, flip, operations, arguments, draw.masked

    def boxes(self, draw: AugmentParams, width: int, height: int) -> np.ndarray:
        (resized_width, resized_height), (left, top) = resized(width, height, self.size), draw.weak
        x, y, w, h = draw.strong
        weak = (left - self.padding) / resized_width, (top - self.padding) / resized_height
        sides = self.size / resized_width, self.size / resized_height
        return np.asarray([[*weak, *sides], [x / width, y / height, w / width, h / height]], np.float32)

    def __call__(self, batch: DeviceInputs) -> tuple[Tensor, Tensor]:
        """Weak and strong views, uint8 [B, H, W, 3], where the batch is."""
        channels(self.fill, batch.pixels.device)  # with the first batch, whichever operations it has
        images = batch.pixels.permute(0, 3, 1, 2).float()
        never = torch.zeros_like(batch.flip)
        weak = self.cut(images, batch.boxes[:, 0], never)
        strong = self.cut(images, batch.boxes[:, 1], batch.flip)
        strong = apply_ops(strong, batch.operations, batch.arguments, self.fill, batch.order)
        return as_uint8(weak), as_uint8(strong)

    def cut(self, images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
        """Boxes of images, some of them mirrored: whole numbers as float [B, 3, H, W]. Outside is the fill colour."""
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
