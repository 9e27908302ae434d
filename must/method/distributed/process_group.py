"""Processes: torch.distributed as torchrun sets it up, or a single process without it; and their common stop.

On SIGTERM to one process all save a checkpoint after the same step, and exit with code 75. Here are the handler and the
agreement between processes; `must/method/train/trainer.py` saves and raises."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from must.base.errors import UserError
from must.base.program import PREEMPTED, Ended, answers_signals, is_first_rank

logger = logging.getLogger(__name__)

LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # variables that torchrun sets
SIGNAL_ECHO = 3.0  # seconds in which the same signal may arrive twice: from the terminal and from torchrun


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

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


def pick_device(name: str) -> torch.device:
    """'auto' takes this process's CUDA GPU if there is one, else Apple's (MPS), for a single process only."""
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


class Preempted(Ended):
    """Stopped, with a checkpoint to resume from; exits with the code for 'run the same again'."""

    def __init__(self, reason: str = "stopped by a signal") -> None:
        super().__init__(PREEMPTED, reason)


LAST_GROUP = list[Any]()
"""The gloo group of before. It outlives DDP's reducer: as the last owner, that waits for the group's thread without
releasing the interpreter's lock, which the thread may need (seen once, torch 2.13: a training that did not end)."""


@contextmanager
def init_distributed(device_name: str, timeout: int) -> Iterator[World]:
    """Joins the process group (torchrun's rendezvous), if torchrun started the process; leaves it at the end.
    `timeout`: seconds that a collective waits for the other processes; if it fails, a process was lost, and Preempted
    is raised. The first error of all processes is in torchrun's report."""
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not os.environ.keys() >= LAUNCHED:
        yield World(0, 1, device)
        return
    join_process_group("nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except Exception as error:
        if isinstance(error, RuntimeError) and is_of_collective(error):
            reason = f"another process ended, or did not respond for {timeout} s"
            logger.warning(f"must: rank {dist.get_rank()}: {reason}; run the same command again to go on")
            raise Preempted(reason) from None
        get_error_handler().record_exception(error)
        raise
    finally:
        if device.type != "cuda":
            LAST_GROUP[:] = [dist.group.WORLD]
        dist.destroy_process_group()


def join_process_group(backend: str, timeout: timedelta) -> None:
    """Initializes the default process group at torchrun's rendezvous.

    Where torchrun keeps the store, restarted processes could read the addresses of the previous attempt in it (torch
    2.13 adds no prefix), and wait for processes that are gone: so the keys of each attempt have their own prefix."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)  # type: ignore[attr-defined]
    attempt = f"must/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    prefixed = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=size, timeout=timeout)


def is_of_collective(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "closed by peer", "reset by peer", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads after each step; a second one kills.

    Only in the main thread of a must program (`must.base.program`): other programs handle signals themselves."""

    def __init__(self) -> None:
        self.received = False
        self._sums: list[AsyncHostCopy] = []
        self._since = 0.0
        handled = (signal.SIGTERM, signal.SIGINT) if answers_signals() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in handled}

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and time.monotonic() - self._since < SIGNAL_ECHO:
            return
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self._since = True, time.monotonic()

    def agreed(self, world: World, due: bool = False) -> tuple[bool, bool]:
        """Whether all processes stop now, and whether they save a checkpoint: one all-reduce of two numbers, after
        every step. On a GPU the result is that of the previous step, so that the host never waits for the step just
        queued. `due`: this process wants a checkpoint; one process is enough."""
        if world.size == 1:
            return self.received, due
        requests = torch.tensor([self.received, due], dtype=torch.float32, device=world.device)
        dist.all_reduce(requests)
        self._sums.append(AsyncHostCopy(requests))
        if len(self._sums) <= (world.device.type == "cuda"):
            return False, False
        stop, save = self._sums.pop(0).read()
        return stop > 0, save > 0

    def check(self, activity: str) -> None:
        """Raises Preempted after a signal. `activity`: what it stops."""
        if self.received:
            if is_first_rank():
                logger.info(f"stopped by a signal while {activity}; run the same command to go on")
            raise Preempted

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class AsyncHostCopy:
    """Copies numbers from the device to the host without blocking; `read` waits for them."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.arrived = values, None
        if values.is_cuda:
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values = pinned.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


def apply_ddp(network: nn.Module, world: World) -> nn.Module:
    """The network under DDP, which averages its gradients over the processes; itself, if there is only one."""
    if world.size == 1:
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """A context for forward and backward: gradients are averaged over processes only if this micro-batch is `last`."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
