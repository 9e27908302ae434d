"""A simple implementation of one MUST step, with which benchmarks/train_step.py compares.

Eager, torch's own MultiheadAttention, the decoder over all patches as a convolution with pixel shuffle, one parameter
group per tensor, an EMA over the state dict, and `.item()` after every step. With `autocast` the networks run in bf16.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMust(nn.Module):
    """An open_clip vision transformer with a mask token, a pixel decoder and a classifier [D, K]."""

    def __init__(self, visual: Any, classifier: Tensor) -> None:
        super().__init__()
        self.visual, width, self.patch = visual, visual.conv1.out_channels, visual.patch_size[0]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ln_patch = nn.LayerNorm(width)
        self.decoder = nn.Sequential(nn.Conv2d(width, 3 * self.patch**2, 1), nn.PixelShuffle(self.patch))
        self.classifier = nn.Parameter(classifier)

    def forward(self, images: Tensor, mask: Tensor | None = None):
        visual: Any = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        if mask is not None:
            x = x * (1 - mask[..., None]) + self.mask_token * mask[..., None]
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        x = visual.transformer(visual.ln_pre(x))
        feature = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
        logits = 100 * feature @ self.classifier
        if mask is None:
            return logits
        patches = self.ln_patch(x[:, 1:])
        local = F.normalize(patches @ visual.proj, dim=-1)
        side = round(patches.shape[1] ** 0.5)
        pixels = self.decoder(patches.transpose(1, 2).reshape(len(x), -1, side, side))
        return logits, pixels, (local - feature[:, None]).square().sum(-1)


class PlainStep:
    def __init__(self, visual: nn.Module, classifier: Tensor, device: torch.device, autocast: bool) -> None:
        self.student = PlainMust(visual, classifier).to(device)
        self.teacher = copy.deepcopy(self.student).eval()
        groups = [{"params": [p], "weight_decay": 0.05 if p.ndim > 1 else 0.0} for p in self.student.parameters()]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5)
        self.device, self.autocast = device, autocast

    def __call__(self, weak: Tensor, strong: Tensor, mask: Tensor) -> float:
        """Views [B, 3, H, W], normalised; mask [B, L] of 0 and 1."""
        context = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with context:
            with torch.no_grad():
                score, label = self.teacher(weak).float().softmax(-1).max(-1)
            logits, pixels, distance = self.student(strong, mask)
        confident = score > 0.7
        loss = F.cross_entropy(logits.float(), label, reduction="none")[confident].sum() / confident.sum().clamp(min=1)
        loss = loss - logits.float().softmax(-1).mean(0).clamp(min=1e-30).log().mean()
        patch, side = self.student.patch, round(mask.shape[1] ** 0.5)
        area = mask.view(-1, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        loss = loss + ((pixels.float() - strong).abs() * area).sum() / area.sum() / 3
        loss = loss + 0.2 * (distance * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            weights = self.teacher.state_dict()
            for name, value in self.student.state_dict().items():
                weights[name].copy_(0.999 * weights[name] + 0.001 * value)
        return loss.item()
