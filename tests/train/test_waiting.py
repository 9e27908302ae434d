"""Between two readings of the log the host runs ahead of the device: it waits for no value and launches little."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.optim import optimizer

from must.config import TrainConfig
from must.data.augment.exact import ViewSettings
from must.data.augment.gpu import DeviceInputs, DeviceViews
from must.data.augment.gpu_ops import NAMES
from must.data.augment.normalize import channels
from must.data.image.preprocess import Preprocess
from must.method.distributed.process_group import World
from must.method.model.backbone import build_visual
from must.method.model.masked_vit import MaskedViT
from must.method.train.log import Meter
from must.method.train.step import MustStep
from tests.golden import golden_model
from tests.model.tiny import FAMILIES, SIZE, model_config
from tests.train.step_ranks import IMAGES, made_batch
from tests.waiting import DEVICE, HostWaitsError, unread


@pytest.fixture
def fused_on_meta(monkeypatch):
    """torch refuses its fused AdamW on a device without values, though the kernel has shapes for it."""
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])


def launches_of_steps(**settings) -> list[Counter[str]]:
    """Of each of three steps, with their part of the log's sums, of a model of three blocks."""
    config = TrainConfig(shards="-", classifier="-", output="-", batch_size=IMAGES, precision="fp32", **settings)
    method = MustStep(golden_model().to(DEVICE), Preprocess(size=32), config, World(0, 1, DEVICE), 8, 2)
    for values in (method.preprocess.mean, method.preprocess.std):
        channels(values, DEVICE)  # once a run
    size, meter, found = IMAGES // config.pieces, Meter(), []
    for step in range(3):
        parts = [made_batch(step, range(n, n + size)) for n in range(0, IMAGES, size)]
        with unread() as launches:
            meter.add(method(step, parts))
        found.append(launches)
    return found


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"loss_reduction": "rank"}], ids=str)
def test_a_step_waits_for_nothing(fused_on_meta, settings):
    first, second, third = launches_of_steps(**settings)
    assert second == third and second["_fused_adamw_"] and second["_foreach_lerp_"] == 1
    assert first.keys() - second.keys() <= {"zeros", "zeros_like"}  # the optimizer's moments


def test_a_steps_launches_are_bounded(fused_on_meta):
    """What a GPU's host must queue for a step: a tower of L blocks takes a number of launches, not one an image."""
    _, launches, _ = launches_of_steps()
    total = sum(launches.values())
    assert total <= 490, launches.most_common()  # 472 of three blocks: the teacher, the student and back, AdamW, EMA
    assert launches["_to_copy"] <= 12 and launches["zeros_like"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_of_towers_waits(family):
    architecture = model_config(family)
    tower = build_visual({"quick_gelu": False, **architecture})
    model = MaskedViT(tower, torch.zeros(architecture["embed_dim"], 5)).to(DEVICE)
    images = torch.zeros(2, 3, SIZE, SIZE, device=DEVICE)
    masked = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    with unread() as launches:
        output = model(images, masked)
        (output.logits.sum() + output.reconstruction.sum() + output.alignment.sum()).backward()
    assert 100 < sum(launches.values()) <= 400, launches.most_common()


def views_of(operations: list[list[int]]) -> Counter[str]:
    settings = ViewSettings(Preprocess(size=64), patch_size=8, mask_patch_size=16, weak_padding=4)
    count, views = len(operations), DeviceViews(settings)
    channels(views.fill, DEVICE)
    pixels = torch.zeros(count, views.side, views.side, 3, dtype=torch.uint8)
    inputs = DeviceInputs.of(
        pixels, torch.full((count, 2, 4), 0.5), torch.zeros(count, dtype=torch.bool), torch.tensor(operations),
        torch.ones(count, len(operations[0])), torch.zeros(count, 5, dtype=torch.int64),
    )  # fmt: skip
    with unread() as launches:
        weak, strong = views(inputs.to(DEVICE))
    assert weak.shape == strong.shape == (count, 64, 64, 3) and strong.device == DEVICE
    return launches


@pytest.mark.parametrize("name", NAMES)
def test_views_on_the_device_wait_for_nothing(name):
    number = NAMES.index(name)
    few = views_of([[number, -1], [-1, number]])
    many = views_of([[number, -1], [-1, number]] * 16)
    assert few == many  # launches do not grow with the images


WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 0],
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "new": lambda x: torch.tensor([1.0], device=x.device),
    "to": lambda x: torch.ones(3).to(x.device),
    "copy": lambda x: x.copy_(torch.ones(3)),
}


@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING)
def test_what_waits_is_found(operation):
    """The check itself: each of these is a wait that was, or might be, in a step."""
    x = torch.ones(3, device=DEVICE)
    with pytest.raises((HostWaitsError, NotImplementedError, RuntimeError, TypeError)), unread():
        operation(x)
