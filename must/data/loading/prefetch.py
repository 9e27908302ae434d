"""Prefetches shards: a loader's samplers announce the shards to be read, threads download them and pin those in use."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from must.data.format import Shard
from must.data.loading.cache import ShardCache
from must.data.loading.order import GlobalBatches
from must.data.loading.reader import ShardReader

Value = TypeVar("Value")
THREADS = 4
SHARDS_AHEAD = 4  # shards that evaluation downloads ahead; training downloads a window
PAUSE = 1.0  # seconds until a retry, after no room for a shard or while another process downloads it


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
            self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(THREADS)]
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
                    self.changed.wait(PAUSE)
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
                    self.not_before[position] = time.monotonic() + PAUSE
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
