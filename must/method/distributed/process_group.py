"""Processes: torch.distributed as torchrun sets it up, or a single process without it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from must.base.errors import UserError
from must.base.exits import PREEMPTED
from must.method.distributed.heartbeat import EXITED, SILENCE_S, Heartbeat, connect_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in rank order (an all-gather of pickles). Every process must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, number: float) -> float:
        """The sum over all processes (an all-reduce). Every process must call it; the host waits for the result."""
        if self.size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def begin(self, step: int) -> None:
        """Call it when a step begins, so that a message about a lost process can name its step."""
        if self.heartbeat is not None:
            self.heartbeat.begin(step)


class LostRank(SystemExit):
    """Another process of the run is lost; exits with the code for 'run the same again'."""

    reason = "another process of the run is gone"

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


def pick_device(name: str) -> torch.device:
    """'auto' takes this process's CUDA GPU if there is one, else Apple's (MPS), for a single process only.
    Raises ValueError: the machine does not have the device, or several processes cannot share it."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: no such device here; use 'auto' or an existing one") from None
    if device.type == "mps" and not alone:
        raise UserError("--device mps: takes one process; start it without torchrun, or with --device cpu")
    return device


@contextmanager
def init_distributed(device_name: str, timeout: int) -> Iterator[World]:
    """Joins the process group (torchrun's rendezvous), if torchrun started the process; leaves it at the end.
    `timeout`: seconds after which a silent process is considered lost.
    Raises LostRank: a collective failed because another process is lost; a line on stderr names it."""
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The heartbeat names the lost process, so its timeout is shorter than that of the collectives.
    limit = timeout + 4 * min(SILENCE_S, timeout)
    join_process_group(backend, limit)
    rank, size = dist.get_rank(), dist.get_world_size()
    heartbeat = Heartbeat(connect_store(timeout), rank, size, timeout) if size > 1 else None
    try:
        yield World(rank, size, device, heartbeat)
    except RuntimeError as error:
        reason = heartbeat.explain() if heartbeat and is_of_collective(error) else ""
        if not reason and heartbeat and "timed out" in str(error).lower():
            reason = f"a process did not respond for {limit:g} s; stopping, run the same command again"
        if not reason:
            raise
        if reason != EXITED:
            logger.warning(f"must: {reason}")
        raise LostRank from None
    finally:
        if heartbeat:
            heartbeat.close()
        dist.destroy_process_group()


def join_process_group(backend: str, limit: float) -> None:
    """Initializes the default process group at torchrun's rendezvous.

    Where torchrun keeps the store, restarted processes could read the addresses of the previous attempt in it (torch
    2.13 adds no prefix), and wait for processes that are gone: so the keys of each attempt have their own prefix.
    """
    wait = timedelta(seconds=limit)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=connect_store(limit, "group"), rank=rank, world_size=size, timeout=wait)
    else:
        dist.init_process_group(backend, timeout=wait)


def is_of_collective(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "closed by peer", "reset by peer", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
