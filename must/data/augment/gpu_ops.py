"""RandAugment's operations on batches of images, each with its own argument, where the images are.

They compute what timm's do on Pillow images (tests compare them); only rotation, shear, shift and blur interpolate in
another way. Images are float32 [N, 3, H, W] with whole values of 0..255, arguments float32 [N].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from must.data.augment.normalize import channels

Fill = tuple[int, int, int]


def apply_ops(images: Tensor, operations: Tensor, arguments: Tensor, fill: Fill, order: Tensor | None = None) -> Tensor:
    """Applies RandAugment's operations to a batch of images, each with its own argument.

    Args:
        operations: int64 [N, L] in host memory, numbers in NAMES, -1 for none; those of a row are done from left to
            right. The host launches what occurs, and so need not ask the device.
        arguments: float32 [N, L].
        fill: colour of pixels that a rotation or shift brings in.
        order: int64 [N, L] beside the images, `operations.argsort(0)`; made and copied here if it is not given.
    """
    images = images.clone()
    order = operations.argsort(dim=0, stable=True).to(images.device) if order is None else order
    for layer in range(operations.shape[1]):
        numbers, counts = operations[:, layer].unique(return_counts=True)
        chunks = order[:, layer].split(counts.tolist())
        for number, chosen in zip(numbers.tolist(), chunks, strict=True):
            if number >= 0:
                result = OPERATIONS[NAMES[number]](images[chosen], arguments[:, layer][chosen], fill)
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
    """Blends with Pillow's SMOOTH filter, which leaves the border as it is."""
    kernel = torch.ones(3, 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(x, kernel / 13, groups=3)).round()
    return blend(smooth, x, factor)


def blur(x: Tensor, radius: Tensor, fill: Fill) -> Tensor:
    """Gaussian, each image with its own; 13 taps, rows then columns."""
    N, C, H, W = x.shape
    taps = torch.arange(-6, 7, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (taps / radius.clamp(min=1e-3)[:, None]).square()).softmax(1).repeat_interleave(C, 0)
    rows = F.conv2d(
        F.pad(x, (6, 6, 6, 6), "reflect").view(1, N * C, H + 12, W + 12), kernel[:, None, None], groups=N * C
    )
    return F.conv2d(rows, kernel[:, None, :, None], groups=N * C).view(N, C, H, W)


def rotate(x: Tensor, degrees: Tensor, fill: Fill) -> Tensor:
    angle = -degrees * (math.pi / 180)
    zero = torch.zeros_like(angle)
    return transform(x, [angle.cos(), angle.sin(), zero, -angle.sin(), angle.cos(), zero], fill)


def shear_x(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return transform(x, [one, factor, factor, zero, one, zero], fill)


def shear_y(x: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return transform(x, [one, zero, zero, factor, one, factor], fill)


def translate_x_rel(x: Tensor, share: Tensor, fill: Fill) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return transform(x, [one, zero, 2 * share, zero, one, zero], fill)


def translate_y_rel(x: Tensor, share: Tensor, fill: Fill) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return transform(x, [one, zero, zero, zero, one, 2 * share], fill)


def translate_x(x: Tensor, pixels: Tensor, fill: Fill) -> Tensor:
    return translate_x_rel(x, pixels / x.shape[3], fill)


def translate_y(x: Tensor, pixels: Tensor, fill: Fill) -> Tensor:
    return translate_y_rel(x, pixels / x.shape[2], fill)


def transform(x: Tensor, rows: list[Tensor], fill: Fill) -> Tensor:
    """Affine maps from the result's coordinates to the image's, both from -1 to 1: six numbers [N] of two rows."""
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    background = channels(fill, x.device)
    inside = F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
    return torch.where((grid.abs() <= 1).all(-1)[:, None], inside, background)


def blend(degenerate: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return degenerate + (x - degenerate) * column(factor)


def grey(x: Tensor) -> Tensor:
    """Pillow's conversion to "L", [N, 1, H, W]."""
    red, green, blue = x.unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()[:, None]


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Fill], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Solarize": solarize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "ColorIncreasing": color,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Brightness": brightness,
    "BrightnessIncreasing": brightness,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "TranslateXRel": translate_x_rel,
    "TranslateYRel": translate_y_rel,
    "Desaturate": desaturate,
    "GaussianBlur": blur,
}
NAMES = tuple(OPERATIONS)
