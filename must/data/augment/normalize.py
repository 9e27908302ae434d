"""Normalizes pixels to the network's input, a whole batch at once, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from must.data.image.preprocess import Preprocess


def normalize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], on the device of `pixels`."""
    mean = torch.tensor(preprocess.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=pixels.device).view(1, 3, 1, 1)
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std)
