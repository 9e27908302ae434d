"""Normalizes a batch of pixels to the network's input, on the device."""

from functools import lru_cache

import torch
from torch import Tensor

from must.data.image.preprocess import Preprocess


def normalize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], on the device of `pixels`."""
    mean, std = (channels(values, pixels.device) for values in (preprocess.mean, preprocess.std))
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=64)
def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number per channel, float32 [1, 3, 1, 1], copied to the device once, as the host waits for the copy."""
    with torch.inference_mode(False):  # the first caller may be an evaluation
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
