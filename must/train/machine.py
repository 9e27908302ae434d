"""What a training process sets up on its machine before it starts."""

from __future__ import annotations

import ctypes

import torch

from must.train.distributed import share_cores

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
