"""How fast a step is here: beside a plain loop, as a share of the peak, and what its kernels and loaders do."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from must.api.verify.plain import PlainStep
from must.api.verify.single import CheckFailedError, Found, Setting, demand
from must.config import TrainConfig
from must.data.augment.normalize import normalize
from must.data.image.preprocess import Preprocess
from must.data.loading.loader import TrainBatch
from must.method.distributed.process_group import World, pick_device
from must.method.model.backbone import build_visual
from must.method.model.masked_vit import MaskedViT
from must.method.train.autotune import blank, pixel_bytes
from must.method.train.calculated import STATE_BYTES, Shape
from must.method.train.compiled import compile_blocks
from must.method.train.step import MustStep

CLASSES = 1000
BATCHES = {"ViT-B-32-quickgelu": 256, "ViT-B-16-quickgelu": 128, "ViT-L-14-quickgelu": 64}  # halved until they fit
STEPS, WARM_UP = 10, 3
FUSED = {"cuda": ("flash", "fmha", "cudnn"), "cpu": ("attention",)}  # in the names of attention's kernels
LOADER_SECONDS = 10.0


def image_tower(setting: Setting, model: str) -> Any:
    """open_clip's image tower with random weights; for a CPU a tiny one of the same class."""
    import open_clip

    torch.manual_seed(0)
    if setting.tiny:
        vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
        return build_visual({"embed_dim": 32, "vision_cfg": vision, "quick_gelu": False})
    return open_clip.create_model(model, pretrained=None).visual


def classifier_of(tower: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(tower.output_dim, CLASSES), dim=0)


def random_method(setting: Setting, model: str, batch: int, **changes: Any) -> MustStep:
    """A step of the method on random weights."""
    tower, device = image_tower(setting, model), pick_device(setting.device)
    size, patch = tower.image_size[0], tower.patch_size[0]
    config = TrainConfig(
        shards="-",
        classifier="-",
        output="-",
        batch_size=batch,
        mask_patch_size=2 * patch if size > 32 else patch,
        **changes,
    )
    student = MaskedViT(tower, classifier_of(tower)).to(device)
    return MustStep(student, Preprocess(size=size), config, World(0, 1, device), 1000, 1000)


def batch_of(method: MustStep, images: int, pieces: int = 1) -> list[TrainBatch]:
    """Micro-batches of random pixels, on the device."""
    size, patch = method.preprocess.size, method.student.patch_size
    whole = blank(images // pieces, size, int(0.3 * (size // patch) ** 2))
    pixels = torch.randint(0, 256, whole.weak.shape, dtype=torch.uint8)
    return [whole._replace(weak=pixels, strong=pixels.clone()).to(method.world.device)] * pieces


def seconds_of(step: Callable[[int], Any], device: torch.device) -> float:
    """The median of some steps."""
    times = []
    for number in range(WARM_UP + STEPS):
        synchronize(device)
        began = time.perf_counter()
        step(number)
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(setting: Setting, model: str) -> Found:
    """Ours, ours compiled, and the plain loop, one after the other, in bf16."""
    batch = 8 if setting.tiny else BATCHES[model]
    while True:
        try:
            return measured(setting, model, batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if batch == 1:
                raise CheckFailedError("not even one image fits into the GPU's memory") from None
            batch //= 2


def measured(setting: Setting, model: str, batch: int) -> Found:
    device = pick_device(setting.device)
    method = random_method(setting, model, batch, precision="bf16")
    parts = batch_of(method, batch)
    flops, peak = 4 * shape_of(method.student.visual).forward_flops, matmul_peak(device, torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    values: dict[str, Any] = {"batch": batch, "peak_tflops": peak / 1e12}
    values["images_per_s"] = batch / seconds_of(lambda number: method(number, parts), device)
    if device.type == "cuda":
        values["memory"] = torch.cuda.max_memory_allocated(device)
    values["share_of_peak"] = values["images_per_s"] * flops / peak
    values["busy"], values["kernels"] = kernels(lambda: method(99, parts), device)
    method = random_method(setting, model, batch, precision="bf16")
    began = time.perf_counter()
    why = "not tried on a CPU" if setting.tiny else compile_blocks(method, batch)
    values["compile_s"] = time.perf_counter() - began
    values["compiled_images_per_s"] = batch / seconds_of(lambda number: method(number, parts), device)
    gain = batch / values["images_per_s"] - batch / values["compiled_images_per_s"]
    values["compiling_pays_after"] = round(values["compile_s"] / gain) if gain > 0 and not why else None
    values["plain_images_per_s"] = batch / plain_seconds(setting, model, parts, device)
    faster = values["images_per_s"] / values["plain_images_per_s"]
    values["calculated_memory"] = calculated_bytes(method, batch)
    memory = f", {values['memory'] / 1e9:.1f} GB" if "memory" in values else ""
    memory += f" (`must plan` calculates {values['calculated_memory'] / 1e9:.1f})"
    return demand(
        setting.tiny or faster > 0.9,
        f"{values['images_per_s']:.0f} images/s ({values['share_of_peak']:.0%} of the peak, the device computes "
        f"{values['busy']:.0%} of the time), compiled {values['compiled_images_per_s']:.0f} "
        f"({worth(why, values)}), plain loop "
        f"{values['plain_images_per_s']:.0f}; batch {batch}{memory}",
        **values,
    )


def worth(why: str, values: dict[str, Any]) -> str:
    """Whether compiling makes a step faster here, or why there is none."""
    steps = values["compiling_pays_after"]
    return why or (f"faster, earned back after {steps} steps" if steps else "not faster")


def calculated_bytes(method: MustStep, batch: int) -> float:
    """What `must plan --gpu` says that a step of one micro-batch takes."""
    parameters = sum(value.numel() for value in method.student.parameters())
    image = shape_of(method.student.visual).activation_bytes(False) + pixel_bytes(method.preprocess.size)
    return STATE_BYTES * parameters + batch * image


def plain_seconds(setting: Setting, model: str, parts: list[TrainBatch], device: torch.device) -> float:
    tower, (batch,) = image_tower(setting, model), parts
    plain = PlainStep(tower, classifier_of(tower), device, True)
    weak, strong = (normalize(view, Preprocess(size=view.shape[1])) for view in (batch.weak, batch.strong))
    patches = (weak.shape[-1] // tower.patch_size[0]) ** 2
    mask = torch.zeros(len(weak), patches, device=device).scatter(1, batch.masked, 1.0)
    return seconds_of(lambda _: plain(weak, strong, mask), device)


def kernels(step: Callable[[], Any], device: torch.device) -> tuple[float, list[str]]:
    """The share of a step's time in which the device computes, and the names of what took longest there."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        began = time.perf_counter()
        step()
        synchronize(device)
        seconds = time.perf_counter() - began
    on_device = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = sorted(recorded.key_averages(), key=lambda event: getattr(event, on_device), reverse=True)
    busy = sum(getattr(event, on_device) for event in found) / 1e6 / seconds
    return min(busy, 1.0), [event.key[:120] for event in found[:12]]


def attention(setting: Setting) -> Found:
    """By the names of the kernels that a step in bf16 launches (on a CPU: of the operations in float32)."""
    precision = "bf16" if setting.device == "cuda" else "fp32"
    method = random_method(setting, "ViT-B-16-quickgelu", 8, precision=precision)
    parts, device = batch_of(method, 8), method.world.device
    method(0, parts)
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as recorded:
        method(1, parts)
        synchronize(device)
    names = {event.key for event in recorded.key_averages()}
    fused = sorted(name for name in names if any(word in name.lower() for word in FUSED[device.type]))
    return demand(
        bool(fused), f"{len(fused)} such kernels: {fused[0][:80]}" if fused else "no such kernel", kernels=fused
    )


def loaders(setting: Setting) -> Found:
    """Batches of the bundled digits' run, taken as fast as they come; pictures of 32 pixels cost less than photos."""
    from must.method.train.trainer import Trainer

    seconds, found = 1.0 if setting.tiny else LOADER_SECONDS, {}
    for name, changes in {"exact": {}, "fast": {"views": "fast"}, "gpu": {"augment_device": "gpu"}}.items():
        config = setting.train_config(workers=1 if setting.tiny else "auto", epochs=10_000, **changes)
        trainer = Trainer(config, World(0, 1, pick_device(setting.device)))
        trainer.choose()
        groups = trainer.groups(0)
        next(groups)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            count += sum(len(part.weak) for part in next(groups))
        synchronize(trainer.world.device)
        found[name] = count / (time.perf_counter() - began)
    workers = trainer.config.workers
    line = ", ".join(f"{name} {rate:.0f}" for name, rate in found.items())
    return demand(min(found.values()) > 0, f"{line} images/s of the digits by {workers} process(es)", **found)


def shape_of(visual: Any) -> Shape:
    blocks = visual.transformer.resblocks
    return Shape(visual.image_size[0], visual.patch_size[0], visual.conv1.out_channels, len(blocks))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Largest floating point operations a second of a product of a ViT-B block's shapes."""
    rows = 197 * 32 * (8 if device.type == "cuda" else 1)
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, 768), (3072, 768)))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.linear(a, b)
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * a.shape[0] * a.shape[1] * b.shape[0] / best
