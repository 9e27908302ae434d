"""Batches: for training, two views of every image and its mask; for evaluation, one view and the label."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from must.data.eval_view import EvalView, Preprocess
from must.data.image import decode
from must.data.index import Index
from must.data.order import GlobalBatches, MicroBatches
from must.data.reader import ShardReader
from must.data.views import TrainViews, ViewSettings, seed_views

REPLACEMENTS = 16  # undecodable samples in a row after which something larger is wrong


class TrainBatch(NamedTuple):
    weak: Tensor  # uint8 [B, H, W, 3]
    strong: Tensor  # uint8 [B, H, W, 3]
    masked: Tensor  # int64 [B, M]: numbers of the masked patches
    samples: Tensor  # int64 [B]: numbers in the split
    replaced: Tensor  # int64 []: samples of this batch that could not be decoded and were replaced

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(*(value.to(device, non_blocking=True) for value in self))

    def pin_memory(self) -> TrainBatch:
        return TrainBatch(*(value.pin_memory() for value in self))


class EvalBatch(NamedTuple):
    pixels: Tensor  # uint8 [B, H, W, 3]
    samples: Tensor  # int64 [B]: numbers in the split
    labels: list[str | None]
    sources: list[str]


class TrainDataset(Dataset):
    """(epoch, sample number) -> the sample's views, a function of (seed, epoch, sample) alone."""

    def __init__(self, reader: ShardReader, views: ViewSettings, seed: int) -> None:
        self.reader, self.seed = reader, seed
        self.views = TrainViews(views)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
        epoch, wanted = key
        for attempt in range(REPLACEMENTS):
            sample = (wanted + attempt) % len(self.reader)  # a replacement is as reproducible as the sample itself
            data = self.reader.image(sample)  # outside: a damaged shard is no damaged image
            try:
                image = decode(data)
            except ValueError as error:
                problem = error
                continue
            seed_views(self.seed, epoch, sample)
            return *self.views(image), sample, int(attempt > 0)
        raise ValueError(f"{self.reader.uri}: {REPLACEMENTS} samples in a row cannot be read, the last one: {problem}")


def train_batches(
    dataset: TrainDataset, batches: GlobalBatches | MicroBatches, workers: int, pin_memory: bool = False
) -> DataLoader:
    """One rank's batches, from `batches.first_step` to the end of the run, as a DataLoader of TrainBatch."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=quiet_worker,
        prefetch_factor=4 if workers else None,
    )


def collate(samples: list[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]]) -> TrainBatch:
    weak, strong, masked, numbers, replaced = zip(*samples, strict=True)
    return TrainBatch(
        torch.from_numpy(np.stack(weak)),
        torch.from_numpy(np.stack(strong)),
        torch.from_numpy(np.stack(masked)),
        torch.tensor(numbers),
        torch.tensor(sum(replaced)),
    )


class EvalSource:
    """A split in order, as EvalBatch; `skipped` counts samples that could not be decoded, once it was iterated.

    Args:
        rank, world: this process's share: every world-th sample.
    """

    def __init__(
        self, uri: str, split: str, preprocess: Preprocess, batch_size: int, workers: int, rank: int = 0, world: int = 1
    ) -> None:
        self.reader = ShardReader(uri, split)
        self.dataset = EvalDataset(self.reader, preprocess)
        self.batch_size, self.workers = batch_size, workers
        self.numbers = range(rank, len(self.reader), world)
        self.skipped = 0

    @property
    def index(self) -> Index:
        return self.reader.index

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[EvalBatch]:
        self.skipped = 0
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=self.numbers,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=quiet_worker,
        )
        for samples in loader:
            whole = [sample for sample in samples if sample is not None]
            self.skipped += len(samples) - len(whole)
            if whole:
                pixels, numbers, labels, sources = zip(*whole, strict=True)
                yield EvalBatch(torch.from_numpy(np.stack(pixels)), torch.tensor(numbers), list(labels), list(sources))


class EvalDataset(Dataset):
    def __init__(self, reader: ShardReader, preprocess: Preprocess) -> None:
        self.reader, self.view = reader, EvalView(preprocess)

    def __getitem__(self, sample: int) -> tuple[np.ndarray, int, str | None, str] | None:
        data = self.reader.image(sample)  # outside: a damaged shard is no damaged image
        try:
            image = decode(data)
        except ValueError:
            return None
        description = self.reader.description(sample)
        return self.view(image), sample, description.get("label"), description.get("source", "")


def eval_batches(
    shards: str, split: str, preprocess: Preprocess, batch_size: int, workers: int, rank: int = 0, world: int = 1
) -> EvalSource:
    """The samples of a split in index order. Raises ValueError: no index there, or no such split."""
    return EvalSource(shards, split, preprocess, batch_size, workers, rank, world)


def quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
