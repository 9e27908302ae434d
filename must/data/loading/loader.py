"""Batches: for training, two views of every image and its mask; for evaluation, one view and the label.

Shards are prefetched: a loader's samplers announce those to be read, threads download them and pin those in use."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from must.base.errors import TransientError, UserError
from must.base.processes import begin_worker, start_context
from must.base.text import printable
from must.data.augment import TrainViews
from must.data.format import Index, Shard
from must.data.image.decode import decode_view, reason
from must.data.image.preprocess import EvalView, Preprocess
from must.data.loading.cache import ShardCache
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import ShardReader, open_reader

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

PREFETCH = 4  # batches that each loader process prepares in advance
MAX_WARNINGS = 5  # warnings about replaced samples per loader process
REPLACEMENTS = 16  # the number of consecutive undecodable samples that is an error
DOWNLOAD_THREADS = 4  # that download shards
SHARDS_AHEAD = 4  # shards that evaluation downloads ahead; training downloads a window
DOWNLOAD_PAUSE = 1.0  # seconds until a retry, after no room for a shard or while another process downloads it


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
            except TransientError:
                raise
            except Exception as error:  # no error of one image ends the run
                problem = reason(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {reason(error)}"
                self.warn(sample, problem)
        raise UserError(f"{self.reader.uri}: {REPLACEMENTS} samples in a row cannot be read, the last one: {problem}")

    def warn(self, sample: int, problem: str) -> None:
        """Logs the first few, in this process: it may be a loader process, which does not report to the main one."""
        if self.warned < MAX_WARNINGS:
            name = self.reader.shards[self.reader.find_shard(sample)].name
            source = self.reader.description(sample).get("source", "")
            more = "; further ones are only counted" if self.warned + 1 == MAX_WARNINGS else ""
            line = f"warning: sample {sample} of {name} ({source}) cannot be decoded and is replaced by the next one: "
            logger.warning(printable(f"{line}{problem}{more}"))
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
        worker_init_fn=partial(quiet_worker, dict(os.environ)),
        multiprocessing_context=start_context(__name__) if workers else None,
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


def grouped(batches: Iterable[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
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
    `rank`, `world`: this process's share: every world-th sample. `pause`: called before every batch; it may raise."""

    def __init__(
        self, reader: ShardReader, preprocess: Preprocess, batch_size: int, workers: int, rank: int = 0, world: int = 1
    ) -> None:
        self.reader, self.preprocess = reader, preprocess
        self.dataset = EvalDataset(self.reader, preprocess)
        self.batch_size, self.workers = batch_size, workers
        self.numbers: Sequence[int] = range(rank, len(self.reader), world)
        self.skipped = 0
        self.pause: Callable[[], object] = lambda: None

    @classmethod
    def open(cls, config: Any, preprocess: Preprocess, rank: int = 0, world: int = 1, split: str = "") -> EvalSource:
        """The split in a stage's parameters, or `split`."""
        sha256 = getattr(config, "index_sha256", "")
        reader = open_reader(config.shards, split or config.split, config.cache, config.cache_gb, sha256)
        return cls(reader, preprocess, config.batch_size, config.workers, rank, world)

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
            worker_init_fn=partial(quiet_worker, dict(os.environ)),
            multiprocessing_context=start_context(__name__) if self.workers else None,
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


def quiet_worker(environment: dict[str, str], _: int) -> None:
    # torchrun sends a SIGTERM to the process groups of its processes. A loader that is ended by it ends the training
    # process before that has saved its state, so loaders have separate groups; they end when their parent does.
    os.setpgrp()
    begin_worker(environment)
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


def prefetch(
    items: Iterable[Value],
    reader: ShardReader,
    shard_at: Callable[[int], Shard | None],
    ahead: int,
    shard_range: Callable[[int], tuple[int, int]],
    in_flight: int,
) -> Iterator[Value]:
    """`shard_range`: the positions [first, stop) of the shards of the n-th item; for the others see ShardPrefetcher."""
    if reader.cache is None:
        yield from items
        return
    with closing(ShardPrefetcher(reader.cache, reader.uri, shard_at, ahead)) as prefetcher:
        for number, item in enumerate(items):
            prefetcher.use(shard_range(max(number - in_flight, 0))[0], shard_range(number)[1])
            yield item


class ShardPrefetcher:
    """Download threads of one process. The processes of a node share the cache, so no shard is downloaded twice.
    `shard_at`: the shard at a position of the sequence in which shards are used, None past its end; `ahead`: number of
    shards to prefetch, besides those in use."""

    def __init__(self, cache: ShardCache, uri: str, shard_at: Callable[[int], Shard | None], ahead: int) -> None:
        self.cache, self.uri, self.shard_at, self.ahead = cache, uri, shard_at, ahead
        self.first = self.stop = 0
        self.pinned: dict[int, int] = {}  # position -> open file, which keeps the shard in the cache
        self.busy: set[int] = set()
        self.not_before: dict[int, float] = {}
        self.closed = False
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def use(self, first: int, stop: int) -> None:
        """Announces that the shards at positions [first, stop) are read from now on."""
        if (first, stop) == (self.first, self.stop):
            return
        with self.changed:
            self.first, self.stop = first, stop
            self.release(first)
            self.changed.notify_all()
        if not self.threads:  # not earlier: loader processes must not inherit pinned files
            self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(DOWNLOAD_THREADS)]
            for thread in self.threads:
                thread.start()

    def close(self) -> None:
        """Releases everything. A running download ends by itself or with the process."""
        with self.changed:
            self.closed = True
            self.release(None)
            self.changed.notify_all()

    def release(self, first: int | None) -> None:
        for position in [position for position in self.pinned if first is None or position < first]:
            self.cache.release(self.pinned.pop(position))

    def work(self) -> None:
        while True:
            with self.changed:
                while not self.closed and (chosen := self.choose()) is None:
                    self.changed.wait(DOWNLOAD_PAUSE)
                if self.closed:
                    return
                assert chosen is not None
                position, shard = chosen
                self.busy.add(position)
            descriptor = None
            try:
                descriptor = self.cache.open(self.uri, shard, wait=False)
                self.cache.offsets(self.uri, shard)
            except (ValueError, OSError):
                pass  # the reader of the shard gets the same error and reports it
            with self.changed:
                self.busy.discard(position)
                if descriptor is None:
                    self.not_before[position] = time.monotonic() + DOWNLOAD_PAUSE
                elif self.closed or position < self.first:
                    self.cache.release(descriptor)
                else:
                    self.pinned[position] = descriptor

    def choose(self) -> tuple[int, Shard] | None:
        """The first position that is neither pinned nor being downloaded, and its shard."""
        now = time.monotonic()
        for position in range(self.first, self.stop + self.ahead):
            if position in self.pinned or position in self.busy or self.not_before.get(position, 0) > now:
                continue
            shard = self.shard_at(position)
            return None if shard is None else (position, shard)
        return None
