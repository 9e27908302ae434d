"""What a training process sets up on its machine before it starts."""

import ctypes
import os
import shutil
from pathlib import Path

import torch

from must.base.processes import cores

MOST_LOADERS = 16
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


def share_cores() -> None:
    """Leaves one core to the loaders, and divides the rest among this machine's training processes.

    More threads than cores cost far more than they bring: they wait for each other in busy loops. The number
    does not depend on --workers, for sums in another order are not the same to the bit. An explicit OMP_NUM_THREADS is
    left alone (torchrun sets it to 1).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, own_cores() - 1))


def own_cores() -> int:
    """This training process's share of the machine's cores, at least 1."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_processes(device: torch.device, batch_bytes: int = 0, shared: Path = SHARED_MEMORY) -> int:
    """How many loader processes a training process on `device` gets, at least 1.

    - On a CPU two, which share the core that training leaves to them; one where a process has a single core. More
      would take time from training, which is the slower of the two there.
    - With a GPU every core of its share but one, 16 at most: there decoding is slower than training. Fewer where the
      batches that they make ahead would take more than half of what shared memory has left.

    Args:
        batch_bytes: that the batches made ahead by one loader process take in shared memory.
    """
    own = own_cores()
    if device.type == "cpu":
        return min(2, own)
    most = min(max(1, own - 1), MOST_LOADERS)
    if batch_bytes and shared.is_dir():
        most = min(most, shutil.disk_usage(shared).free // 2 // batch_bytes)
    return max(1, most)
