"""What a training process sets up on its machine before it starts."""

from __future__ import annotations

import ctypes
import os

import torch

from must.cores import cores

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_machine(device: torch.device) -> None:
    """Call once, before the first tensor of size."""
    if device.type == "cpu":
        share_cores()
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones.

    By default it gives every large one back to the system at once and asks for it anew, so that each step spends time
    on zeroed pages (benchmarks/train_step.py measures with it). Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def share_cores() -> None:
    """Leaves one core to the loaders, and divides the rest among this machine's training processes.

    More threads than cores cost far more than they bring: they wait for each other in busy loops. The number
    does not depend on --workers, for sums in another order are not the same to the bit. An explicit OMP_NUM_THREADS is
    left alone (torchrun sets it to 1).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        own = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, own - 1))
