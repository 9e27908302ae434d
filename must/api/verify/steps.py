"""Checks of single steps, in one process on one device."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from must.api.verify.single import Found, Setting, demand
from must.config import TrainConfig
from must.data.augment.draws import ViewSettings
from must.data.augment.exact import TrainViews
from must.data.augment.gpu import DeviceInputs, DeviceViews
from must.data.loading.reader import open_reader
from must.method.distributed.process_group import init_distributed, pick_device
from must.method.train.autotune import choose_accumulation
from must.method.train.trainer import Trainer

STEPS = 8
BF16_APART = 0.03  # share of the loss: bf16 has 8 bits of mantissa
COMPILED_APART = 0.01
VIEWS_APART = 3.0  # levels of 255, mean over pixels; what the CPU tests demand of the same code


def losses(config: TrainConfig, steps: int = STEPS) -> list[float]:
    """Of the first steps of a run, without its checkpoints and its log."""
    with init_distributed(config.device, 60) as world:
        trainer = Trainer(config, world)
        trainer.choose()
        demand(not trainer.not_compiled, trainer.not_compiled)
        groups = itertools.islice(trainer.groups(0), steps)
        return [trainer.method(step, parts)["loss"].item() for step, parts in enumerate(groups)]


def apart(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def precision(setting: Setting) -> Found:
    low, high = (losses(setting.train_config(precision=name)) for name in ("bf16", "fp32"))
    difference = apart(low, high)
    return demand(
        difference < BF16_APART,
        f"largest difference {difference:.2%} of the loss in {STEPS} steps",
        bf16=low,
        fp32=high,
    )


def compiled(setting: Setting) -> Found:
    blocks, eager = (losses(setting.train_config(compile=on, precision="fp32"), 3) for on in (True, False))
    difference = apart(blocks, eager)
    return demand(difference < COMPILED_APART, f"largest difference {difference:.2%} of the loss", compiled=blocks)


def waits(setting: Setting) -> Found:
    """torch itself raises at any operation that waits, once told to."""
    found = {}
    for views in ("cpu", "gpu"):
        config = setting.train_config(augment_device=views, workers=1)
        with init_distributed(config.device, 60) as world:
            trainer = Trainer(config, world)
            trainer.choose()
            groups = trainer.groups(0)
            trainer.method(0, next(groups))  # memory and constants are made once
            for step in (1, 2):
                with no_waiting(setting.device):
                    values = trainer.method(step, next(groups))
            found[views] = values["loss"].item()
    return demand(all(np.isfinite(list(found.values()))), "two steps with each kind of views", loss=found)


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """On a CUDA GPU an operation that waits is an error in the block."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def views(setting: Setting, images: int = 64) -> Found:
    """The GPU's views against the exact ones where nothing but crops is drawn, and against a CPU's with RandAugment."""
    config, device = setting.train_config(), pick_device(setting.device)
    reader = open_reader(config.shards, config.split)
    files = [reader.image(number) for number in range(images)]
    plain = ViewSettings(patch_size=8, mask_patch_size=32, randaugment="")
    exact, ours = TrainViews(plain), DeviceViews(plain)
    inputs = made(ours, files)
    theirs = [np.stack(part) for part in zip(*(exact.of_file(f, (0, 0, n)) for n, f in enumerate(files)), strict=True)]
    mean = [
        float(np.abs(a.cpu().numpy().astype(int) - b).mean())
        for a, b in zip(ours(inputs.to(device)), theirs[:2], strict=True)
    ]
    augmented = DeviceViews(ViewSettings(patch_size=8, mask_patch_size=32))
    inputs = made(augmented, files)
    here, there = augmented(inputs.to(device))[1].cpu().int(), augmented(inputs)[1].int()
    strayed = ((here - there).abs() > 1).float().mean().item()
    return demand(
        max(mean) < VIEWS_APART and strayed < 0.02,
        f"{max(mean):.2f} levels from the exact ones; {strayed:.2%} of the pixels differ from a CPU's by more than one",
        mean=mean, strayed=strayed,
    )  # fmt: skip


def made(views: DeviceViews, files: list[bytes]) -> DeviceInputs:
    parts = zip(*(views.of_file(data, (0, 0, number)) for number, data in enumerate(files)), strict=True)
    return DeviceInputs.of(*(torch.from_numpy(np.stack(part)) for part in parts))


def accumulate(setting: Setting) -> Found:
    """A step of the published batch, cut as `auto` cuts it."""
    from must.api.verify.speed import batch_of, random_method

    size = 64 if setting.tiny else 1024
    method = random_method(setting, "ViT-B-16-quickgelu", size)
    pieces = choose_accumulation(method, size, 0)
    method(0, batch_of(method, size, pieces))
    values: dict[str, Any] = {"pieces": pieces}
    if setting.device == "cuda":
        total = torch.cuda.get_device_properties(method.world.device).total_memory
        values |= {"memory": torch.cuda.max_memory_reserved(), "total": total}
    return demand(pieces >= 1, f"a step of {size} images in {pieces} micro-batch(es) {taken(values)}", **values)


def taken(values: dict[str, Any]) -> str:
    return f"took {values['memory'] / 1e9:.1f} of {values['total'] / 1e9:.1f} GB" if "memory" in values else "ran"
