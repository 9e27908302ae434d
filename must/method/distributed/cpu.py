"""Settings of a training process on its machine: threads, loader processes, precision and malloc."""

import ctypes
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from must.base.processes import cores

MOST_LOADERS = 16
CORE_SPEED = 6e10  # operations per second of one core in float32: 0.12 TFLOP/s measured on two
LOADING = 0.02  # about so many core-seconds for the two views of a photograph: 500 x 375 pixels, trained at 224
LARGE_WORK = 1e10  # operations to train on an image; above, a model is large: ViT-B/32 has 3.5e10, the example 1e8
SHARED_MEMORY = Path("/dev/shm")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_machine(device: torch.device) -> None:
    """Call once, before the first large tensor is made."""
    if device.type == "cpu":
        share_cores()
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next ones.

    By default it returns every large block to the system at once and requests it again, so that each step spends time
    on zeroing pages (benchmarks/train_step.py measures with it). Does nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


class Division(NamedTuple):
    """How a training process on a CPU uses its cores."""

    threads: int  # of torch
    loaders: int  # processes
    precision: str  # "bf16" or "fp32"


def division(work: float) -> Division:
    """The settings of `auto` on this CPU, for a model that needs `work` operations to train on an image.

    - A small model: two loaders share one core. Preparing an image takes about as long as training on it, and more
      busy threads than cores wait for each other. In fp32, so that machines agree up to rounding.
    - A large model: loaders get as many whole cores as they need, often none: for ViT-B/16 they take a hundredth of
      the time. In bf16 where the processor has instructions that multiply it.

    The threads do not depend on --workers: sums in another order are not the same to the bit."""
    available, has_bf16 = own_cores(), multiplies_bf16()
    if work < LARGE_WORK:
        return Division(max(1, available - 1), min(2, available), "fp32")
    training = work / CORE_SPEED / (2 if has_bf16 else 1)
    needed = available * LOADING / (LOADING + training)
    return Division(max(1, available - int(needed)), int(needed) + 1, "bf16" if has_bf16 else "fp32")


def auto_precision(device: torch.device, work: float) -> str:
    """The precision of `--precision auto`, for a model that needs `work` operations to train on an image."""
    if device.type == "cpu":
        return division(work).precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's x86 processor has instructions that multiply bf16 (AVX-512's or AMX)."""
    with suppress(OSError):
        return bool(re.search(r"^flags\b.*\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text(), re.MULTILINE))
    return False


def share_cores(threads: int = 0) -> None:
    """Sets the number of torch's threads; 0: all cores but one, for the loaders. Has no effect where OMP_NUM_THREADS is
    set (torchrun sets it to 1)."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, own_cores() - 1))


def own_cores() -> int:
    """This training process's share of the machine's cores, at least 1."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_processes(batch_bytes: int = 0, shared: Path = SHARED_MEMORY) -> int:
    """The number of loader processes of a training process with a GPU, where decoding is slower than training: all
    cores of its share but one, 1 to 16. Fewer where their prefetched batches, of `batch_bytes` for each, would take
    more than half of its share of the free shared memory."""
    limit = min(max(1, own_cores() - 1), MOST_LOADERS)
    if batch_bytes and shared.is_dir():
        free = shutil.disk_usage(shared).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        limit = min(limit, free // 2 // batch_bytes)
    return max(1, limit)
