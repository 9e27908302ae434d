"""Speed and memory of one training step against a plain implementation of it (benchmarks/plain_step.py).

    python benchmarks/train_step.py                                  ViT-B/16 at 224 px, on what the machine has
    python benchmarks/train_step.py --model ViT-L-14-quickgelu --batch-size 256 --device cuda

Every variant runs in its own process, on random weights and random images in memory (no loading). The work is counted
as one dense forward pass for the teacher and three for the student (forward and backward), for all variants; the peak
is that of a matrix product of the model's shapes in the same precision.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="an open_clip ViT [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step [%(default)s]")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two others [%(default)s]")
    parser.add_argument("--rounds", type=int, default=1, help="times that all variants take turns [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="print where the time of each variant's step goes")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options, json.loads(options.variant))))
        return
    print(f"{options.model}, batch {options.batch_size}, {options.steps} steps, median [smallest, largest]")
    rounds = [[run(variant) for variant in variants(options)] for _ in range(options.rounds)]
    rows = [merge(runs) for runs in zip(*rounds, strict=True)]
    for row in rows:
        print(line(row, rows[0]))


def variants(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"name": "must, as shipped", "precision": "auto"},
        {"name": "must, fp32", "precision": "fp32"},
        {"name": "must, bf16", "precision": "bf16"},
    ]
    plain = {"name": "plain, fp32", "plain": True, "precision": "fp32"}
    return [plain, {"name": "plain, bf16 autocast", "plain": True, "precision": "bf16"}, *rows]


def run(variant: dict[str, Any]) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--variant", json.dumps(variant)], stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        return {"name": variant["name"], "error": f"failed with code {result.returncode}"}
    *output, last = result.stdout.strip().splitlines()
    print("\n".join(output), end="\n" if output else "")
    return {"name": variant["name"], **json.loads(last)}


def merge(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row for all rounds of a variant."""
    if errors := [row for row in runs if "error" in row]:
        return errors[0]
    speeds = sorted(speed for row in runs for speed in row["speeds"])
    middle, peak = statistics.median(speeds), max(row["peak"] for row in runs)
    return {
        "name": runs[0]["name"],
        "images_per_s": (speeds[0], middle, speeds[-1]),
        "tflops": middle * runs[0]["flops"] / 1e12,
        "peak_tflops": peak / 1e12,
        "mfu": middle * runs[0]["flops"] / peak,
        "memory_gb": max(row["memory_gb"] for row in runs),
    }


def line(row: dict[str, Any], base: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:28} {row['error']}"
    low, middle, high = row["images_per_s"]
    return (
        f"{row['name']:28} {middle:8.2f} images/s [{low:.2f}, {high:.2f}]  {row['tflops']:7.3f} TFLOP/s  "
        f"{row['mfu']:5.1%} of {row['peak_tflops']:.3f}  {row['memory_gb']:.2f} GB  "
        f"{middle / base['images_per_s'][1]:.2f} x"
    )


def measure(options: argparse.Namespace, variant: dict[str, Any]) -> dict[str, Any]:
    import torch

    from must.model.distributed import pick_device

    device = pick_device(options.device)
    step, flops, precision = build(options, variant, device)
    peak = matmul_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for number in range(options.steps + 2):
        synchronize(device)
        started = time.perf_counter()
        step(number)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    if options.profile:
        profile(step, device)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    speeds = [options.batch_size / s for s in seconds[2:]]
    return {"speeds": speeds, "flops": flops, "peak": peak, "memory_gb": memory}


def build(options: argparse.Namespace, variant: dict[str, Any], device: Any) -> tuple[Any, float, str]:
    """(a function of the step's number, floating point operations per image, its precision)"""
    import logging

    import open_clip
    import torch

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    visual = open_clip.create_model(options.model, pretrained=None).visual
    classifier = torch.nn.functional.normalize(torch.randn(visual.output_dim, options.classes), dim=0)
    size, patch, B = visual.image_size[0], visual.patch_size[0], options.batch_size
    weak, strong = (torch.randint(0, 256, (B, size, size, 3)).byte() for _ in range(2))
    patches = (size // patch) ** 2
    masked = torch.stack([torch.randperm(patches)[: int(0.3 * patches)].sort().values for _ in range(B)])
    flops = 4 * forward_flops(visual)
    if variant.get("plain"):
        from benchmarks.plain_step import PlainStep
        from must.data.augment import normalize
        from must.data.image.preprocess import Preprocess

        plain = PlainStep(visual, classifier, device, variant["precision"] == "bf16")
        first, second = (normalize(view.to(device), Preprocess(size=size)) for view in (weak, strong))
        mask = torch.zeros(B, patches).scatter(1, masked, 1.0).to(device)
        return lambda _: plain(first, second, mask), flops, variant["precision"]
    step, precision = must_step(options, variant, device, visual, classifier, (weak, strong, masked))
    return step, flops, precision


def must_step(options: Any, variant: dict[str, Any], device: Any, visual: Any, classifier: Any, data: Any):
    import torch

    from must.config import TrainConfig
    from must.data.image.preprocess import Preprocess
    from must.data.loader import TrainBatch
    from must.model.distributed import World, divide_cores, prepare_machine, share_cores
    from must.model.masked_vit import MaskedViT
    from must.training.step import MustStep

    prepare_machine(device)
    settings = {name: value for name, value in variant.items() if name not in ("name", "plain")}
    config = TrainConfig(shards="-", classifier="-", output="-", batch_size=options.batch_size, **settings)
    student = MaskedViT(visual, classifier).to(device)
    preprocess, alone = Preprocess(size=visual.image_size[0]), World(0, 1, device)
    step = MustStep(student, preprocess, config, alone, 1000, 1000)
    if device.type == "cpu":
        share_cores(divide_cores(step.work).threads)
    weak, strong, masked = data
    batch = TrainBatch(weak, strong, masked, torch.arange(len(weak)), torch.tensor(0))
    return lambda number: step(number, [batch]), step.precision


def forward_flops(visual: Any) -> float:
    """Of one image: 2 x (patch embedding + blocks of 12 W^2 a token + attention's two products of T^2 W)."""
    patch, width = visual.patch_size[0], visual.conv1.out_channels
    tokens, blocks = (visual.image_size[0] // patch) ** 2 + 1, len(visual.transformer.resblocks)
    embedding = (tokens - 1) * width * 3 * patch**2
    return 2 * (embedding + blocks * (12 * width * width * tokens + 2 * tokens * tokens * width))


def matmul_peak(device: Any, dtype: Any) -> float:
    """Largest floating point operations a second of a product of a ViT-B block's shapes."""
    import torch

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


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile(step: Any, device: Any) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profiler(activities=activities) as recorded:
        step(0)
        synchronize(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = recorded.key_averages()
    print(averages.table(sort_by=order, row_limit=12, max_name_column_width=48), flush=True)


if __name__ == "__main__":
    main()
