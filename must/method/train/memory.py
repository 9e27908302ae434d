"""How much memory a training process takes, with its loaders."""

from __future__ import annotations

import multiprocessing
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

GB = 10**9


class Memory(NamedTuple):
    used: int  # bytes
    total: int  # that there are; 0: unknown
    place: str

    def __str__(self) -> str:
        of = f" of {self.total / GB:.3g}" if self.total else ""
        return f"memory: {self.used / GB:.2g}{of} GB of {self.place}"


def memory_of(device: torch.device) -> Memory:
    """The most that this process took of its GPU; on a CPU, what it and its loaders take of the machine now.

    Memory that processes share is counted once.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Memory(torch.cuda.max_memory_reserved(device), total, "the GPU")
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    return Memory(sum(own_bytes(pid) for pid in pids), machine_bytes(), "this machine")


def own_bytes(pid: int) -> int:
    """A process's memory, shared pages divided among those that share them; 0 where the system does not tell."""
    with suppress(OSError):
        match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(match.group(1)) * 1024 if match else 0
    return 0


def machine_bytes() -> int:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
