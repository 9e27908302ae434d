"""What a training process sets up on its machine before it starts."""

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
CORE_SPEED = 6e10  # operations a second of one core in float32: 0.12 TFLOP/s measured on two
LOADING = 0.02  # seconds of a core for the two views of a photograph, nearly: 500 x 375 pixels, 224 to train on
LARGE_WORK = (
    1e10  # operations of an image's training above which a model is large: ViT-B/32 has 3.5e10, the example's 1e8
)
SHARED_MEMORY = Path("/dev/shm")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_machine(device: torch.device) -> None:
    """Call once, before the first tensor of size."""
    if device.type == "cpu":
        share_cores()
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones.

    By default it gives every large one back to the system at once and asks for it again, so that each step spends time
    on zeroed pages (benchmarks/train_step.py measures with it). Does nothing where the C library has no mallopt.
    """
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
    """What `auto` means on this CPU, for a model of so many operations an image's training.

    - A small model: one core is left to the loaders, of which two share it. Preparing an image takes about as long as
      training on it, and more busy threads than cores wait for each other. In fp32, so that machines agree to rounding.
    - A large model: loaders get as many cores as their work needs beside training, and less than one core is none: for
      ViT-B/16 they take a hundredth of the time. In bf16 where the processor multiplies it by itself.

    The threads do not depend on --workers: sums in another order are not the same to the bit.
    """
    own, has_bf16 = own_cores(), multiplies_bf16()
    if work < LARGE_WORK:
        return Division(max(1, own - 1), min(2, own), "fp32")
    training = work / CORE_SPEED / (2 if has_bf16 else 1)
    needed = own * LOADING / (LOADING + training)
    return Division(max(1, own - int(needed)), int(needed) + 1, "bf16" if has_bf16 else "fp32")


def auto_precision(device: torch.device, work: float) -> str:
    """What `--precision auto` means, for a model of so many operations an image's training."""
    if device.type == "cpu":
        return division(work).precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's x86 processor has instructions that multiply bf16 (AVX-512's or AMX)."""
    with suppress(OSError):
        return bool(re.search(r"^flags\b.*\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text(), re.MULTILINE))
    return False


def share_cores(threads: int = 0) -> None:
    """Sets torch's threads; 0: one core is left to the loaders. An explicit OMP_NUM_THREADS is left alone (torchrun
    sets it to 1)."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, own_cores() - 1))


def own_cores() -> int:
    """This training process's share of the machine's cores, at least 1."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_processes(batch_bytes: int = 0, shared: Path = SHARED_MEMORY) -> int:
    """How many loader processes a training process with a GPU gets: every core of its share but one, 1 to 16.

    There decoding is slower than training. Fewer where the batches that they make ahead would take more than half of
    what shared memory has left.

    Args:
        batch_bytes: that the batches made ahead by one loader process take in shared memory.
    """
    most = min(max(1, own_cores() - 1), MOST_LOADERS)
    if batch_bytes and shared.is_dir():
        most = min(most, shutil.disk_usage(shared).free // 2 // batch_bytes)
    return max(1, most)
