"""What a run will cost: what is known before it begins, and how long it takes by the first steps of it."""

import itertools
import multiprocessing
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from must.config import TrainConfig
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import ShardReader
from must.method.train.propagated import bytes_of
from must.method.train.step import MustStep
from must.method.train.train_state import TrainProgress

GB = 10**9
WARM_UP = 1  # steps that are not counted: memory is taken, kernels are chosen, the loaders begin
FEWEST_TIMED, LONG_ENOUGH = 3, 10.0  # steps and seconds after which training says how long it will take
LARGE = 50e6  # parameters of a model that is no toy: ViT-B/32's image tower has 88 million


class Memory(NamedTuple):
    used: int  # bytes
    total: int  # that there are; 0: unknown
    place: str

    def __str__(self) -> str:
        of = f" of {self.total / GB:.3g}" if self.total else ""
        return f"memory: {self.used / GB:.2g}{of} GB of {self.place}"


@dataclass(frozen=True)
class Size:
    """What a run is, before any step of it."""

    images: int  # of the split
    steps: int
    epochs: int
    batch_size: int  # over all processes
    micro_batch: int  # images that a process takes at once
    processes: int
    workers: int  # loader processes of each
    device: str
    parameters: int  # of the student
    checkpoint_bytes: int
    checkpoints_kept: int
    shards_bytes: int  # of the split
    cache_bytes: int  # what of them the cache will hold at most; 0: they are on this machine
    threads: int = 0  # of torch, of each process on a CPU
    precision: str = "fp32"

    def lines(self) -> list[str]:
        files = f"checkpoints: {gigabytes(self.checkpoint_bytes)} each"
        if self.checkpoints_kept > 1:
            files += f", {gigabytes(self.checkpoints_kept * self.checkpoint_bytes)} for {self.checkpoints_kept} of them"
        if self.cache_bytes:
            files += f"; cache: up to {gigabytes(self.cache_bytes)} of {gigabytes(self.shards_bytes)} of remote shards"
        pieces = "" if self.micro_batch * self.processes == self.batch_size else f" in pieces of {self.micro_batch}"
        return [
            f"{self.steps:,} steps of {self.batch_size} images{pieces} ({self.epochs} epochs), {self.processes} "
            f"process(es) on {self.device} in {self.precision}, "
            f"{f'{self.threads} thread(s) and ' if self.threads else ''}{self.workers} loader(s) each",
            files,
        ]


@dataclass(frozen=True)
class Pace:
    """What was measured. Times are seconds a step of the whole batch."""

    mean: float
    least: float
    most: float
    measured: int  # steps
    images: int  # of each of them, over all processes
    waiting: float  # share of the time
    memory: Memory

    def lines(self, size: Size, left: int) -> list[str]:
        """Args:
        left: steps still to be done.
        """
        rate, seconds = size.batch_size / self.mean, self.mean * left
        part = f" with {self.images} of its images" if self.images < size.batch_size else ""
        found = [
            f"{duration(seconds)} for {left:,} steps on this machine: {self.mean:.3g} s a step ({self.least:.3g} to "
            f"{self.most:.3g}), {rate:.3g} images/s, {self.waiting:.0%} of it waiting for data; {self.memory}; "
            f"measured on {self.measured} steps{part}, after {WARM_UP} to warm up"
        ]
        if size.device == "cpu" and size.parameters >= LARGE:
            found.append(
                f"at {rate:.2g} images/s this is {duration(seconds)}; use a GPU (--device cuda; several: torchrun) or "
                "a smaller model"
            )
        return found


class StepTimer:
    """Times the steps of a run that goes on; `mark` after each of them."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.waited: list[float] = []

    def mark(self, waited: float) -> None:
        """`waited`: seconds of the run until now in which there was no batch."""
        self.marks.append(time.monotonic())
        self.waited.append(waited)

    @property
    def seconds(self) -> float:
        """Measured so far, without the warm-up."""
        return self.marks[-1] - self.marks[WARM_UP - 1] if len(self.marks) > WARM_UP else 0.0

    @property
    def steps(self) -> int:
        return max(len(self.marks) - WARM_UP, 0)

    def enough(self, seconds: float) -> bool:
        return self.steps >= FEWEST_TIMED and self.seconds >= seconds

    def pace(self, memory: Memory, images: int, batch_size: int, more: float = 0.0) -> Pace:
        """Args:
        images: of a measured step.
        more: seconds a step that are not in what was timed.
        """
        marks = self.marks[WARM_UP - 1 :]
        times = [(after - before) * batch_size / images + more for before, after in itertools.pairwise(marks)]
        waited = (self.waited[-1] - self.waited[WARM_UP - 1]) / self.seconds
        return Pace(sum(times) / len(times), min(times), max(times), len(times), images, waited, memory)


def size_of(
    config: TrainConfig,
    batches: GlobalBatches,
    reader: ShardReader,
    must_step: MustStep,
    progress: TrainProgress,
    loaders: int,
) -> Size:
    """Args:
    batches: of the run from its first step on.
    progress: with what was chosen for it.
    loaders: processes that load, of each training process.
    """
    classes = must_step.student.classifier.shape[1]
    labels = bytes_of(len(reader), classes) if config.pseudo_labels == "propagated" else 0
    kept = min(config.keep_checkpoints, -(-batches.steps // (config.checkpoint_every or batches.steps_per_epoch)))
    kept += batches.steps // config.keep_every if config.keep_every else 0
    total = sum(shard.bytes for shard in reader.shards)
    return Size(
        images=len(reader),
        steps=batches.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        micro_batch=progress.micro_batch,
        processes=must_step.world.size,
        workers=loaders,
        device=must_step.world.device.type,
        parameters=sum(p.numel() for p in must_step.student.parameters()),
        checkpoint_bytes=state_bytes(must_step.student, must_step.teacher, must_step.optimizer) + labels,
        checkpoints_kept=kept,
        shards_bytes=total,
        cache_bytes=min(total, int(config.cache_gb * GB)) if reader.cache is not None else 0,
        threads=progress.threads,
        precision=progress.precision,
    )


def state_bytes(student: torch.nn.Module, teacher: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of a checkpoint, nearly: both networks and AdamW's two moments."""
    networks = [value for network in (student, teacher) for value in network.state_dict().values()]
    moments = [value for group in optimizer.param_groups for value in group["params"]] * 2
    return sum(value.numel() * value.element_size() for value in [*networks, *moments])


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


def gigabytes(size: float) -> str:
    return f"{size / GB:.3g} GB" if size >= 0.01 * GB else f"{size / 1e6:.2g} MB"


def duration(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
