"""The cost of a run: its size, known before it begins, and its duration, estimated from the first steps."""

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
WARM_UP = 1  # steps that are not timed: memory is allocated, kernels are chosen, loaders start
FEWEST_TIMED, LONG_ENOUGH = 3, 10.0  # steps and seconds after which training logs the estimate
LARGE = 50e6  # parameters of a real model: ViT-B/32's image tower has 88 million


class Memory(NamedTuple):
    used: int  # bytes
    total: int  # bytes of the device; 0: unknown
    device: str  # in words

    def __str__(self) -> str:
        total = f" of {self.total / GB:.3g}" if self.total else ""
        return f"memory: {self.used / GB:.2g}{total} GB of {self.device}"


@dataclass(frozen=True)
class Size:
    """The size of a run, known before its first step."""

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
    cache_bytes: int  # most bytes of them in the cache; 0: they are on this machine
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
    """The measured speed. Times are seconds per step of the full batch."""

    mean: float
    least: float
    most: float
    measured: int  # steps
    images: int  # of each step, over all processes
    waiting: float  # share of the time
    memory: Memory

    def lines(self, size: Size, remaining: int) -> list[str]:
        """The log lines for so many remaining steps."""
        rate, seconds = size.batch_size / self.mean, self.mean * remaining
        part = f" with {self.images} of its images" if self.images < size.batch_size else ""
        lines = [
            f"{duration(seconds)} for {remaining:,} steps on this machine: {self.mean:.3g} s a step ("
            f"{self.least:.3g} to {self.most:.3g}), {rate:.3g} images/s, {self.waiting:.0%} of it waiting for data; "
            f"{self.memory}; measured on {self.measured} steps{part}, after {WARM_UP} to warm up"
        ]
        if size.device == "cpu" and size.parameters >= LARGE:
            lines.append(
                f"at {rate:.2g} images/s this is {duration(seconds)}; use a GPU (--device cuda; several: torchrun) or "
                "a smaller model"
            )
        return lines


class StepTimer:
    """Times the steps of a run; call `mark` after each step."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.waited: list[float] = []

    def mark(self, waited: float) -> None:
        """`waited`: seconds that the run has waited for batches until now."""
        self.marks.append(time.monotonic())
        self.waited.append(waited)

    @property
    def seconds(self) -> float:
        """Measured seconds, without the warm-up."""
        return self.marks[-1] - self.marks[WARM_UP - 1] if len(self.marks) > WARM_UP else 0.0

    @property
    def steps(self) -> int:
        return max(len(self.marks) - WARM_UP, 0)

    def enough(self, seconds: float) -> bool:
        return self.steps >= FEWEST_TIMED and self.seconds >= seconds

    def pace(self, memory: Memory, images: int, batch_size: int, extra: float = 0.0) -> Pace:
        """Args:
        images: of a measured step.
        extra: seconds per step besides the timed ones.
        """
        marks = self.marks[WARM_UP - 1 :]
        times = [(after - before) * batch_size / images + extra for before, after in itertools.pairwise(marks)]
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
    progress: with the chosen settings.
    loaders: loader processes of each training process.
    """
    classes = must_step.student.classifier.shape[1]
    labels = bytes_of(len(reader), classes) if config.pseudo_labels == "propagated" else 0
    keep = min(config.keep_checkpoints, -(-batches.steps // (config.checkpoint_every or batches.steps_per_epoch)))
    keep += batches.steps // config.keep_every if config.keep_every else 0
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
        checkpoints_kept=keep,
        shards_bytes=total,
        cache_bytes=min(total, int(config.cache_gb * GB)) if reader.cache is not None else 0,
        threads=progress.threads,
        precision=progress.precision,
    )


def state_bytes(student: torch.nn.Module, teacher: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About the bytes of a checkpoint: both networks and AdamW's two moments."""
    networks = [value for network in (student, teacher) for value in network.state_dict().values()]
    moments = [value for group in optimizer.param_groups for value in group["params"]] * 2
    return sum(value.numel() * value.element_size() for value in [*networks, *moments])


def memory_of(device: torch.device) -> Memory:
    """The peak memory of this process on its GPU; on a CPU, the current memory of it and its loaders.

    Shared memory is counted once.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Memory(torch.cuda.max_memory_reserved(device), total, "the GPU")
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    return Memory(sum(process_bytes(pid) for pid in pids), machine_bytes(), "this machine")


def process_bytes(pid: int) -> int:
    """A process's memory (Pss: shared pages are divided among processes); 0 where the system does not report it."""
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
