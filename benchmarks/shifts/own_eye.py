"""Would the ladder judge better by an eye that the task's own unlabeled images have trained? Nothing is adapted.

    python -m benchmarks.shifts.own_eye leaning brush [--eyes tower linear linear+tower] [--steps 100]

Of each run that run.py has kept: points of top-1 by all of it and by the best rung; by each eye what the ladder keeps,
how many look-alikes are of an image's true class, and how many of the surest "prefer their class". The eyes: tower, the
frozen tower's middle, as the ladder is; linear, of that the directions in which an image's views (moved, turned,
scaled, brightened, noisy) differ least and images most; conv, a small network from random weights, by SimCLR (arXiv
2002.05709), --steps of 256 images; deeper, the tower's first half, continued so; NAME+tower, both, whitened.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shifts.judge import ALPHAS, measured
from benchmarks.shifts.packages import ROOT
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.model.bundle import preprocess_of, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.select.ladder import climb
from must.method.select.neighbours import A_COMPONENT, COMPONENTS, centred, look_alikes, nearest, whitened
from must.method.select.tokens import MiddleTokens

EYES = ("tower", "linear", "linear+tower", "conv", "conv+tower", "deeper", "deeper+tower")
VIEWS, FIRST, SHRINK = 6, 256, 0.1  # of an image; principal components; of covariances between them, towards 0
BATCH, TEMPERATURE = 256, 0.2


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 3, S, S] in 0 ... 1, each moved, turned by 15 degrees at most, scaled, brightened and made noisy."""

    def even(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    some = len(images)
    angle, high = even(some) * 0.26, 1 + 0.2 * even(some)
    wide = high * (1 + 0.1 * even(some))
    rows = ((angle.cos() * wide, -angle.sin() * high, 0.12 * even(some)),
            (angle.sin() * wide, angle.cos() * high, 0.12 * even(some)))  # fmt: skip
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    lit = (moved - 0.5) * (1 + 0.3 * even(some, 1, 1, 1)) + 0.5 + 0.15 * even(some, 1, 1, 1)
    noise = torch.randn(some, 1, *images.shape[2:], generator=generator)
    return lit + 0.08 * noise * torch.rand(some, 1, 1, 1, generator=generator)


class Half(nn.Module):
    """What the ladder looks at, from images [B, 3, S, S] in 0 ... 1: float32 [B, 2048]."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        bundle = zero_shot_bundle(load_text_classifier(str(folder / "classifier.safetensors")))
        self.network, self.preprocess = bundle.model.eval(), preprocess_of(bundle.description)
        self.middle = MiddleTokens(self.network)
        tower: Any = self.network.tower
        tower.visual.transformer.resblocks = tower.blocks[: max(len(tower.blocks) // 2, 1)]

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        tokens = self.network.tower.forward_tokens((images - mean) / std, lambda patches: patches)
        return self.middle.reduced(self.network.tower.patches(tokens))


def conv() -> nn.Sequential:
    """For images [B, 3, 32, 32]: float32 [B, 1536]."""
    sizes = ((3, 24, 5), (24, 48, 3), (48, 96, 3))
    layers = [(nn.Conv2d(i, o, k, 2, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, k in sizes]
    return nn.Sequential(*(layer for three in layers for layer in three), nn.Flatten())


def contrasted(eye: nn.Module, images: Tensor, steps: int, rate: float) -> np.ndarray:
    """Float32 [N, P], whitened components of what `eye` sees once it tells the images apart, whatever the view."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(seen_by(eye, images[:2]).shape[1], 128)
    optimizer = torch.optim.AdamW([*eye.requires_grad_().parameters(), *head.parameters()], rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.1)
    eye.train()
    for _ in range(steps):
        some = images[torch.randperm(len(images), generator=generator)[:BATCH]]
        views = F.normalize(head(eye(torch.cat([augmented(some, generator), augmented(some, generator)]))), dim=1)
        alike = (views @ views.T / TEMPERATURE).fill_diagonal_(-1e9)
        optimizer.zero_grad()
        F.cross_entropy(alike, torch.arange(len(views)).roll(len(some))).backward()
        optimizer.step()
        schedule.step()
    return whitened(seen_by(eye, images).numpy())


@torch.no_grad()
def seen_by(eye: nn.Module, images: Tensor) -> Tensor:
    eye.eval()
    return torch.cat([eye(part) for part in images.split(512)])


def linear(half: nn.Module, images: Tensor) -> np.ndarray:
    """Float32 [N, P], discriminants of the images' views by their within-image deviation, the most telling first."""
    generator = torch.Generator().manual_seed(0)
    clean = seen_by(half, images)
    with torch.no_grad():
        views = [torch.cat([half(augmented(part, generator)) for part in images.split(512)]) for _ in range(VIEWS)]
    mean, count = clean.mean(0), max(8, min(FIRST, len(images) // 4))
    first = torch.pca_lowrank(clean, count, niter=3)[2]
    seen = ((torch.stack(views) - mean) @ first).double()
    within = torch.cov((seen - seen.mean(0)).flatten(0, 1).T) * VIEWS / (VIEWS - 1)
    within = (1 - SHRINK) * within + SHRINK * within.diagonal().diag()
    inverse = torch.linalg.inv(torch.linalg.cholesky(within))
    turned = torch.linalg.eigh(inverse @ torch.cov(seen.flatten(0, 1).T) @ inverse.T)[1].flip(1)
    found = ((clean - mean) @ first).double() @ inverse.T @ turned
    return found[:, : max(1, min(COMPONENTS, len(images) // A_COMPONENT))].float().numpy()


@cache
def eyes(folder: Path, names: tuple[str, ...], steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By each eye look-alikes int32 [M, C] of the M images that the tower takes for no copies; and those images."""
    half = Half(folder)
    source = EvalSource(open_reader(str(folder / "shards"), "train"), half.preprocess, 256, 0)
    images = torch.cat([batch.pixels for batch in source]).permute(0, 3, 1, 2).float() / 255
    tokens = seen_by(half, images).half().float().numpy()  # as run.py keeps them
    originals = look_alikes(tokens)[1]
    images, made = images[originals], {"tower": whitened(tokens[originals])}
    for name in {name.removesuffix("+tower") for name in names} - {"tower"}:
        torch.manual_seed(0)
        eye, rate = (conv(), 3e-3) if name == "conv" else (Half(folder), 3e-4)
        made[name] = linear(eye, images) if name == "linear" else contrasted(eye, images, steps, rate)
    made |= {f"{name}+tower": np.hstack([whitened(values), made["tower"]]) for name, values in made.items()}
    return {name: nearest(centred(made[name])) for name in names}, originals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--eyes", nargs="+", choices=EYES, default=list(EYES))
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for file in [path for name in options.tasks for path in sorted((ROOT / "runs").glob(f"{name}.*/looks-*.npz"))]:
        task, variant, *_, seed = file.parent.name.split(".")
        by, originals = eyes(ROOT / "work" / f"{task}.{variant}.{seed}", tuple(options.eyes), options.steps)
        _, points, errors = measured(looks := np.load(file))
        hidden, labels = looks["hidden"][originals], looks["labels"][:, originals]
        cells = [f"{points[-1]:+.1f}", f"{points.max():+.1f}"]
        for near in by.values():
            kept = climb(looks["probabilities"][:, originals], labels, near)
            at, same = ALPHAS.index(kept.alpha), (hidden[near] == hidden[:, None])[hidden >= 0].mean()
            told = f"at {kept.alpha:g}, {same:.1%}, {kept.preferred or 0:.0%}"
            cells.append(f"{points[at]:+.1f} (±{errors[at]:.1f}) {told}")
        print("|", " | ".join([file.parent.name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
