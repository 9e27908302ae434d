"""Batches: for training, two views of every image and its mask; for evaluation, one view and the label.

The order of the samples is a pure function of (seed, epoch), whatever the number of processes or workers: shards are
permuted; the samples of a window of consecutive shards are shuffled together; global step s of an epoch takes positions
[s G, (s + 1) G) of the result, each rank a part of them. So N processes use the same batches as one, a run resumes at
any step without reading earlier samples, and every rank has the same number of steps.

A loader's samplers announce the shards that are to be read, so that those in a bucket are prefetched (reader.py)."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from must.base.errors import UserError
from must.base.processes import CONTEXT, begin_worker
from must.base.text import make_printable
from must.config.train import check_batch
from must.data.augment import TrainViews
from must.data.format import Index, Shard
from must.data.image.decode import decode_view, describe_decode_error
from must.data.image.preprocess import EvalView, Preprocess, set_levels
from must.data.reader import ShardReader, open_reader, prefetch

logger = logging.getLogger(__name__)

SHARDS_ORDER, WINDOW_ORDER = 0, 1  # seeds of the two uses of the generator
PREFETCH = 4  # batches that each loader process prepares in advance
MAX_WARNINGS = 5  # warnings about replaced samples per loader process
REPLACEMENTS = 16  # the number of consecutive undecodable samples that is an error
SHARDS_AHEAD = 4  # shards that evaluation downloads ahead; training downloads a window


class EpochOrder:
    """Sample numbers of one epoch by position. `sizes`: samples of each shard, in index order, in which samples are
    numbered; `window`: shards that are shuffled together."""

    def __init__(self, sizes: list[int], seed: int, epoch: int, window: int) -> None:
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.seed, self.epoch, self.window = seed, epoch, max(1, window)
        generator = np.random.default_rng((SHARDS_ORDER, seed, epoch))
        self.shards = generator.permutation(len(sizes))
        in_order = np.asarray(sizes, dtype=np.int64)[self.shards]
        ends = np.cumsum(in_order)[self.window - 1 :: self.window]
        total = int(in_order.sum())
        self.window_ends = ends if len(ends) and ends[-1] == total else np.append(ends, total)
        self.samples = lru_cache(maxsize=2)(self.window_samples)

    def window_samples(self, number: int) -> np.ndarray:
        shards = self.shards[number * self.window : (number + 1) * self.window]
        samples = np.concatenate([np.arange(self.starts[s], self.starts[s + 1]) for s in shards])
        np.random.default_rng((WINDOW_ORDER, self.seed, self.epoch, number)).shuffle(samples)
        return samples

    def window_at(self, position: int) -> int:
        """Number of the window that contains a position."""
        return int(np.searchsorted(self.window_ends, position, side="right"))

    def take(self, start: int, stop: int) -> np.ndarray:
        """Sample numbers at positions [start, stop): int64."""
        parts = []
        while start < stop:
            number = self.window_at(start)
            first = 0 if number == 0 else int(self.window_ends[number - 1])
            end = min(stop, int(self.window_ends[number]))
            parts.append(self.samples(number)[start - first : end - first])
            start = end
        return np.concatenate(parts)


class GlobalBatches:
    """A DataLoader's batch sampler: one rank's (epoch, sample) pairs for every step of a whole run, in `micro_batches`
    equal parts a step. `first_step`: the step to resume at; skipping earlier steps takes no time."""

    def __init__(
        self,
        sizes: list[int],
        batch_size: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        window: int = 16,
        first_step: int = 0,
        micro_batches: int = 1,
    ) -> None:
        samples = sum(sizes)
        check_batch(samples, batch_size, world, micro_batches)
        self.sizes, self.batch_size, self.seed, self.window = sizes, batch_size, seed, window
        self.rank, self.local_size, self.micro_batches = rank, batch_size // world, micro_batches
        self.steps_per_epoch = samples // batch_size
        self.steps = self.steps_per_epoch * epochs
        self.epochs, self.first_step = epochs, first_step
        self.order = lru_cache(maxsize=2)(partial(EpochOrder, sizes, seed, window=window))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            start = step_of_epoch * self.batch_size + self.rank * self.local_size
            samples = self.order(epoch).take(start, start + self.local_size)
            for part in np.split(samples, self.micro_batches):
                yield [(epoch, int(sample)) for sample in part]

    def shard_range(self, number: int) -> tuple[int, int]:
        """The positions [first, stop) in the run's sequence of shards of the windows of the n-th list of samples."""
        epoch, step_of_epoch = divmod(self.first_step + number // self.micro_batches, self.steps_per_epoch)
        start, shards = step_of_epoch * self.batch_size, len(self.sizes)
        first, last = (self.order(epoch).window_at(position) for position in (start, start + self.batch_size - 1))
        return epoch * shards + first * self.window, epoch * shards + min((last + 1) * self.window, shards)

    def shard_at(self, position: int) -> int | None:
        """Number of the shard at a position of that sequence; None past the run's end."""
        epoch, number = divmod(position, len(self.sizes))
        return int(self.order(epoch).shards[number]) if epoch < self.epochs else None


class TrainBatch(NamedTuple):
    weak: Tensor  # uint8 [B, H, W, 3]
    strong: Tensor  # uint8 [B, H, W, 3]
    masked: Tensor  # int64 [B, M]: numbers of the masked patches
    samples: Tensor  # int64 [B]: numbers in the split
    replaced: Tensor  # int64 []: samples of this batch that could not be decoded and were replaced

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(*(value.to(device, non_blocking=True) for value in self))


class EvalBatch(NamedTuple):
    pixels: Tensor  # uint8 [B, H, W, 3]
    samples: Tensor  # int64 [B]: numbers in the split
    labels: list[str | None]
    sources: list[str]


class TrainDataset(Dataset[tuple[Any, ...]]):
    """(epoch, sample number) -> the sample's views, a function of (seed, epoch, sample) alone.
    `views`: how the views are computed."""

    def __init__(self, reader: ShardReader, views: TrainViews, seed: int) -> None:
        self.reader, self.views, self.seed = reader, views, seed
        self.max_pixels = reader.index.max_pixels
        self.warned = 0

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        epoch, requested = key
        for attempt in range(REPLACEMENTS):
            sample = (requested + attempt) % len(self.reader)  # so replacements are reproducible, too
            data = self.reader.image(sample)  # not in the block: a damaged shard is an error of the run
            try:
                views = self.views.of_file(data, (self.seed, epoch, sample), self.max_pixels)
                return *views, sample, int(attempt > 0)
            except Exception as error:  # no error of one image ends the run
                problem = (
                    describe_decode_error(error)
                    if isinstance(error, ValueError)
                    else f"{type(error).__name__}: {describe_decode_error(error)}"
                )
                self.warn(sample, problem)
        raise UserError(f"{self.reader.uri}: {REPLACEMENTS} samples in a row cannot be read, the last one: {problem}")

    def warn(self, sample: int, problem: str) -> None:
        """Logs the first few, in this process: it may be a loader process, which does not report to the main one."""
        if self.warned < MAX_WARNINGS:
            name = self.reader.shards[self.reader.find_shard(sample)].name
            source = self.reader.description(sample).get("source", "")
            more = "; further ones are only counted" if self.warned + 1 == MAX_WARNINGS else ""
            line = f"warning: sample {sample} of {name} ({source}) cannot be decoded and is replaced by the next one: "
            logger.warning(make_printable(f"{line}{problem}{more}"))
        self.warned += 1


def train_batches(
    dataset: TrainDataset, batches: GlobalBatches, workers: int, device: torch.device | None = None
) -> Iterator[TrainBatch]:
    """One rank's batches, from `batches.first_step` to the end of the run. `device`: the one they are used on."""
    loader = DataLoader(
        dataset,
        batch_sampler=prefetch_batches(batches, dataset.reader, workers * PREFETCH),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=quiet_worker,
        multiprocessing_context=CONTEXT if workers else None,
        prefetch_factor=PREFETCH if workers else None,
    )
    for batch in iterate(loader):
        yield TrainBatch._make(batch)


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches. After an error its processes end at once. Otherwise torch's frames in the traceback keep
    them in a reference cycle; when it is collected, queues are closed first, and each process takes 5 s to end."""
    try:
        yield from loader
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


def group_batches(batches: Iterable[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
    """Lists of `size` batches, the micro-batches of a step."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def collate(samples: list[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """Stacks the arrays of the samples, and counts the replacements.

    In a loader process torch's function stacks into shared memory, without another copy."""
    *arrays, numbers, replaced = zip(*samples, strict=True)
    with warnings.catch_warnings():  # Pillow's pixels are read-only, which is no problem here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        stacked = [default_collate(list(part)) for part in arrays]
    return *stacked, torch.tensor(numbers), torch.tensor(sum(replaced))


class EvalSource:
    """A reader's split in order, as EvalBatch; after an iteration `skipped` is the number of undecodable samples.
    `pause`: called before every batch; it may raise."""

    def __init__(self, reader: ShardReader, preprocess: Preprocess, batch_size: int, workers: int) -> None:
        self.reader, self.preprocess = reader, set_levels(preprocess, reader.index.levels)
        self.dataset = EvalDataset(self.reader, self.preprocess)
        self.batch_size, self.workers = batch_size, workers
        self.numbers: Sequence[int] = range(len(self.reader))
        self.skipped = 0
        self.pause: Callable[[], object] = lambda: None

    @classmethod
    def open(cls, config: Any, preprocess: Preprocess) -> EvalSource:
        """The split in a stage's parameters."""
        reader = open_reader(config.shards, config.split, getattr(config, "index_sha256", ""))
        return cls(reader, preprocess, config.batch_size, config.workers)

    @property
    def index(self) -> Index:
        return self.reader.index

    def only(self, numbers: Sequence[int]) -> EvalSource:
        """A source of these images of the split."""
        source = copy.copy(self)
        source.numbers, source.skipped = numbers, 0
        return source

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[EvalBatch]:
        self.skipped = 0
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=prefetch_samples(self.numbers, self.reader, self.batch_size * (2 * self.workers + 1)),
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=quiet_worker,
            multiprocessing_context=CONTEXT if self.workers else None,
        )
        for samples in iterate(loader):
            decoded = [sample for sample in samples if sample is not None]
            self.skipped += len(samples) - len(decoded)
            if decoded:
                self.pause()
                pixels, numbers, labels, sources = zip(*decoded, strict=True)
                yield EvalBatch(torch.from_numpy(np.stack(pixels)), torch.tensor(numbers), list(labels), list(sources))


class EvalDataset(Dataset[Any]):
    def __init__(self, reader: ShardReader, preprocess: Preprocess) -> None:
        self.reader, self.view = reader, EvalView(preprocess)

    def __getitem__(self, sample: int) -> tuple[np.ndarray, int, str | None, str] | None:
        data = self.reader.image(sample)  # not in the block: a damaged shard is an error of the run
        try:
            pixels = decode_view(data, self.view, self.reader.index.max_pixels)
        except UserError:
            return None
        description = self.reader.description(sample)
        return pixels, sample, description.get("label"), description.get("source", "")


def quiet_worker(_: int) -> None:
    # torchrun sends a SIGTERM to the process groups of its processes. A loader that is ended by it ends the training
    # process before that has saved its state, so loaders have separate groups; they end when their parent does.
    os.setpgrp()
    begin_worker()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def prefetch_batches(batches: GlobalBatches, reader: ShardReader, in_flight: int) -> Iterator[list[tuple[int, int]]]:
    """The batches, while the remote shards of the next ones are prefetched. `in_flight`: batches that the loader
    processes may be preparing."""

    def shard_at(position: int) -> Shard | None:
        number = batches.shard_at(position)
        return None if number is None else reader.shards[number]

    return prefetch(batches, reader, shard_at, batches.window, batches.shard_range, in_flight)


def prefetch_samples(numbers: Sequence[int], reader: ShardReader, in_flight: int) -> Iterator[int]:
    """The numbers of samples, as `prefetch_batches`; `in_flight`: samples that may not be read yet."""

    def shard_range(position: int) -> tuple[int, int]:
        shard = reader.find_shard(numbers[position])
        return shard, shard + 1

    shards = dict(enumerate(reader.shards))
    return prefetch(numbers, reader, shards.get, SHARDS_AHEAD, shard_range, in_flight)
