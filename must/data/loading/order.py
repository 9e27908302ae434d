"""The order in which samples are used: a pure function of (seed, epoch), whatever the number of processes or workers.

Shards are permuted; the samples of a window of consecutive shards are shuffled together; global step s of an epoch
takes positions [s G, (s + 1) G) of the result, each rank a part of them. So N processes use the same batches as one,
a run resumes at any step without reading earlier samples, and every rank has the same number of steps."""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

from must.base.errors import UserError

SHARDS_ORDER, WINDOW_ORDER = 0, 1  # seeds of the two uses of the generator


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


def check_batch(samples: int, batch_size: int, world: int, micro_batches: int) -> None:
    """Refuses a batch that a split of so many images, or so many processes, cannot have."""
    local = batch_size // world
    if batch_size % world:
        raise UserError(f"--batch-size {batch_size}: must be a multiple of the number of processes ({world})")
    if samples < batch_size:
        raise UserError(
            f"--batch-size {batch_size}: the split holds {samples} images only; use a batch of at most that many"
        )
    if local % micro_batches:
        raise UserError(f"--accumulate {micro_batches}: must divide the {local} images that each process takes a step")


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
