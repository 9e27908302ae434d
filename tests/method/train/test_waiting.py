"""Between two readings of the log the host runs ahead of the device: it waits for no value and launches little."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer

from must.base.parameters import load
from must.config import TrainConfig
from must.data.augment.normalize import channels
from must.data.image.preprocess import Preprocess
from must.method.distributed.process_group import StopSignal, World, init_distributed
from must.method.model.backbone import build_visual
from must.method.model.masked_vit import MaskedViT
from must.method.train.log import Meter, NoLog
from must.method.train.propagated import PropagatedLabels
from must.method.train.settings import StepSettings
from must.method.train.step import MustStep
from must.method.train.trainer import Trainer
from tests.golden import golden_model
from tests.method.model.tiny import FAMILIES, SIZE, model_config
from tests.method.train.processes import on_ranks
from tests.method.train.step_ranks import IMAGES, made_batch
from tests.waiting import DEVICE, HostWaitsError, unread

ALONE = World(0, 1, DEVICE)
CPU = torch.device("cpu")


@pytest.fixture
def fused_on_meta(monkeypatch):
    """torch refuses its fused AdamW on a device without values, though the kernel has shapes for it."""
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])


def launches_of_steps(world=ALONE, precision="fp32", **settings) -> list[Counter[str]]:
    """Of each of three steps, with their part of the log's sums, of a model of three blocks."""
    size = IMAGES * world.size
    config = TrainConfig(shards="-", classifier="-", output="-", batch_size=size, precision=precision, **settings)
    method = MustStep(golden_model().to(world.device), Preprocess(size=32), StepSettings.of(config), world, 8, 2)
    if config.pseudo_labels == "propagated":
        method.propagated = labels_of(world, len(method.student.classifier.T))
    for values in (method.preprocess.mean, method.preprocess.std):
        channels(values, world.device)  # once a run
    size, meter, found = IMAGES // config.accumulate, Meter(), []
    for step in range(3):
        parts = [made_batch(step, range(n, n + size)) for n in range(0, IMAGES, size)]
        with unread(world.device) as launches:
            meter.add(method(step, parts))
        found.append(launches)
    return found


def labels_of(world: World, classes: int) -> PropagatedLabels:
    """Of the images of the batch, with three neighbours each; their values are of no account here."""
    count = IMAGES * world.size
    numbers = torch.zeros(count, 3, dtype=torch.int64, device=world.device)
    values = torch.ones(count, 3, device=world.device)
    total = torch.ones(classes, device=world.device)
    return PropagatedLabels(numbers, values, (numbers, values), numbers.clone(), values.clone(), total, count)


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"loss_reduction": "rank"}, {"pseudo_labels": "propagated"}], ids=str
)
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


@pytest.mark.parametrize("settings, most", [({}, 580), ({"accumulate": 2}, 1420)], ids=str)
def test_autocast_waits_for_nothing(settings, most):
    """In bf16, which torch has on a CPU and not on a device without values."""
    _, second, third = launches_of_steps(World(0, 1, CPU), "bf16", **settings)
    assert second == third and sum(third.values()) <= most, third.most_common()


def launches_on_a_rank(forms: list[dict]) -> list[list[Counter[str]]]:
    with init_distributed("cpu", 60) as processes:
        return [launches_of_steps(processes, **settings) for settings in forms]


@pytest.mark.slow
def test_processes_wait_for_nothing_and_send_little():
    """DDP: an all-reduce of the gradients, in a bucket, and one of the losses' sums. FSDP: one of those and one of
    whether gradients are finite, and it gathers four times (three blocks, the rest) a pass: teacher, student, back."""
    forms = [{"precision": "bf16", "accumulate": 2, "parallel": parallel} for parallel in ("ddp", "fsdp")]
    found = [third for _, _, third in on_ranks(2, launches_on_a_rank, forms)]
    names = ("allreduce_", "_allgather_base_", "_reduce_scatter_base_")
    assert [[step[name] for name in names] for step in found] == [[2, 0, 0], [2, 32, 4]]
    for step, most in zip(found, (1480, 1320), strict=True):
        assert sum(step.values()) <= most, step.most_common()


def test_the_loop_reads_at_its_log_lines_alone(fused_on_meta, digits, tmp_path, monkeypatch):
    """Batches of the loader, views, steps and their order as `must train` has them; the reading itself is left out."""
    settings = {"preset": "digits", "epochs": 1, "batch_size": 32, "log_every": 3, "checkpoint_every": 10**6}
    settings |= {"device": "meta", "workers": 0, "precision": "fp32"}
    data = {"shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path)}
    trainer, read = Trainer(load(TrainConfig, settings | data), ALONE), []
    trainer.choose()
    preprocess = trainer.must_step.preprocess
    for values in (preprocess.mean, preprocess.std):
        channels(values, DEVICE)  # once a run
    monkeypatch.setattr(trainer.monitor, "check", lambda meter, step, batch: read.append(step + 1) or {})
    with unread():
        trainer.take_steps(trainer.groups(0), NoLog(), StopSignal())
    assert read == [3, trainer.batches.steps]


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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_whole_graphs_and_few(family):
    """What torch.compile gets: one graph for the teacher and one for the student, without a break, for all blocks."""
    architecture = model_config(family)
    towers = [build_visual({"quick_gelu": False, **architecture}) for _ in range(2)]
    teacher, student = (MaskedViT(tower, torch.zeros(architecture["embed_dim"], 5)) for tower in towers)
    teacher.requires_grad_(False)
    images, masked = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, 3, dtype=torch.int64)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in [*teacher.tower.blocks, *student.tower.blocks]:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                teacher(images)
            student(images, masked)
    kinds = 2 if family == "timm, class token" else 1  # its first block has no drop path
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * kinds


@pytest.mark.parametrize(
    "device, operation",
    [
        (DEVICE, lambda x: x[x > 0]),
        (DEVICE, lambda x: torch.tensor([1.0], device=x.device)),
        (DEVICE, lambda x: torch.ones(1).to(x.device)),
        (DEVICE, lambda x: x.copy_(torch.ones(1))),
        (CPU, Tensor.item),
        (CPU, Tensor.tolist),
        (CPU, Tensor.nonzero),
    ],
)
def test_what_waits_is_found(device, operation):
    """The check itself: each of these is a wait that was, or might be, in a step. torch refuses others on DEVICE."""
    x = torch.ones(1, device=device)
    with pytest.raises(HostWaitsError), unread(device):
        operation(x)
