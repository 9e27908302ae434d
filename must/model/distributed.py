"""The processes of a training: joining and stopping them, and their settings on a machine.

`World` is one process or several, as torchrun started them. The second part has threads, loader processes, precision
and malloc of a process on a CPU. As a program it is torchrun that exits with the code of the process that ended first,
without a long report:

    python -m must.model.distributed --nproc-per-node=8 -m must train ...

torchrun itself always exits with 1. A retry policy needs the code: 2, the input is wrong; 75, run the same again.
All options are torchrun's.

On SIGTERM to one process all save a checkpoint after the same step, and exit with code 75. Here are the handler and the
agreement between processes; `must/training/trainer.py` saves and raises."""

import ctypes
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from must.base.console import attach
from must.base.errors import UserError
from must.base.processes import PARENT, count_cores, end_with_parent
from must.base.program import HELD, PREEMPTED, WRONG_INPUT, Ended, answers_signals, is_first_rank

logger = logging.getLogger(__name__)

LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # variables that torchrun sets
SIGNAL_ECHO = 3.0  # seconds in which the same signal may arrive twice: from the terminal and from torchrun
MOST_LOADERS = 16
CORE_SPEED = 6e10  # operations per second of one core in float32: 0.12 TFLOP/s measured on two
LOADING = 0.02  # about so many core-seconds for the two views of a photograph: 500 x 375 pixels, trained at 224
LARGE_WORK = 1e10  # operations to train on an image; above, a model is large: ViT-B/32 has 3.5e10, the example 1e8
SHARED_MEMORY = Path("/dev/shm")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
REPORTED_CODES = (WRONG_INPUT, HELD, PREEMPTED)  # exit codes of processes that printed the reason themselves
SHUTDOWN_TIMEOUT = "120"  # seconds that stopped processes have to save a checkpoint (torchrun: 30)


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


def divide_cores(work: float) -> Division:
    """The settings of `auto` on this CPU, for a model that needs `work` operations to train on an image.

    - A small model: two loaders share one core. Preparing an image takes about as long as training on it, and more
      busy threads than cores wait for each other. In fp32, so that machines agree up to rounding.
    - A large model: loaders get as many whole cores as they need, often none: for ViT-B/16 they take a hundredth of
      the time. In bf16 where the processor has instructions that multiply it.

    The threads do not depend on --workers: sums in another order are not the same to the bit."""
    available, has_bf16 = count_own_cores(), can_multiply_bf16()
    if work < LARGE_WORK:
        return Division(max(1, available - 1), min(2, available), "fp32")
    training = work / CORE_SPEED / (2 if has_bf16 else 1)
    needed = available * LOADING / (LOADING + training)
    return Division(max(1, available - int(needed)), int(needed) + 1, "bf16" if has_bf16 else "fp32")


def choose_precision(device: torch.device, work: float) -> str:
    """The precision of `--precision auto`, for a model that needs `work` operations to train on an image."""
    if device.type == "cpu":
        return divide_cores(work).precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def can_multiply_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's x86 processor has instructions that multiply bf16 (AVX-512's or AMX)."""
    with suppress(OSError):
        return bool(re.search(r"^flags\b.*\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text(), re.MULTILINE))
    return False


def share_cores(threads: int = 0) -> None:
    """Sets the number of torch's threads; 0: all cores but one, for the loaders. Has no effect where OMP_NUM_THREADS is
    set (torchrun sets it to 1)."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, count_own_cores() - 1))


def count_own_cores() -> int:
    """This training process's share of the machine's cores, at least 1."""
    return max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def count_loader_processes(batch_bytes: int = 0, shared: Path = SHARED_MEMORY) -> int:
    """The number of loader processes of a training process with a GPU, where decoding is slower than training: all
    cores of its share but one, 1 to 16. Fewer where their prefetched batches, of `batch_bytes` for each, would take
    more than half of its share of the free shared memory."""
    limit = min(max(1, count_own_cores() - 1), MOST_LOADERS)
    if batch_bytes and shared.is_dir():
        free = shutil.disk_usage(shared).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        limit = min(limit, free // 2 // batch_bytes)
    return max(1, limit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun; returns the exit code."""
    from torch.distributed import run as torchrun  # slow to import
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    attach()
    if PARENT in os.environ:
        end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # for the started processes
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    parser = torchrun.get_args_parser()
    options = list(sys.argv[1:] if arguments is None else arguments)
    if "--shutdown-timeout" in parser.format_help():  # torchrun of some versions
        options = ["--shutdown-timeout", SHUTDOWN_TIMEOUT, *options]
    try:
        torchrun.run(parser.parse_args(options))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        for rank, failure in error.failures.items():
            code = failure.exitcode
            stopped = code == -signal.SIGTERM != first.exitcode  # by torchrun, because the first one had failed
            if code not in REPORTED_CODES and not stopped:
                outcome = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
                logger.warning(f"rank {rank} (pid {failure.pid}) {outcome}")
        # Out of memory, the machine was reclaimed, or NCCL's watchdog found that a collective timed out.
        if first.exitcode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT):
            return PREEMPTED
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException:  # passed on to the processes, which saved a checkpoint
        return PREEMPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
