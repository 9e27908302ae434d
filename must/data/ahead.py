"""Downloads the shards that come next, and keeps those that are being read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from must.data.cache import ShardCache
from must.data.index import Shard

THREADS = 4
PAUSE = 1.0  # seconds until a shard is tried again that had no room, or that another process was downloading


class ReadAhead:
    """Threads of one process; those of a node's other processes see through the cache what is done already.

    Args:
        shard_at: the shard at a place of the sequence in which shards are used; None behind its end.
        ahead: shards to have ready behind those in use.
    """

    def __init__(self, cache: ShardCache, uri: str, shard_at: Callable[[int], Shard | None], ahead: int) -> None:
        self.cache, self.uri, self.shard_at, self.ahead = cache, uri, shard_at, ahead
        self.first = self.stop = 0
        self.held: dict[int, int] = {}  # place -> open file, which keeps the shard in the cache
        self.busy: set[int] = set()
        self.not_before: dict[int, float] = {}
        self.closed = False
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def use(self, first: int, stop: int) -> None:
        """From now on the shards at places [first, stop) are read."""
        if (first, stop) == (self.first, self.stop):
            return
        with self.changed:
            self.first, self.stop = first, stop
            self.release(first)
            self.changed.notify_all()
        if not self.threads:  # not before: loader processes must not inherit files that are held
            self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(THREADS)]
            for thread in self.threads:
                thread.start()

    def close(self) -> None:
        """Lets everything go. A download that is under way ends by itself, or with the process."""
        with self.changed:
            self.closed = True
            self.release(None)
            self.changed.notify_all()

    def release(self, first: int | None) -> None:
        for place in [place for place in self.held if first is None or place < first]:
            self.cache.release(self.held.pop(place))

    def work(self) -> None:
        while True:
            with self.changed:
                while not self.closed and (chosen := self.choose()) is None:
                    self.changed.wait(PAUSE)
                if self.closed:
                    return
                assert chosen is not None
                place, shard = chosen
                self.busy.add(place)
            descriptor = None
            try:
                descriptor = self.cache.open(self.uri, shard, wait=False)
                self.cache.offsets(self.uri, shard)
            except (ValueError, OSError):
                pass  # whoever reads the shard meets the same error, and says it
            with self.changed:
                self.busy.discard(place)
                if descriptor is None:
                    self.not_before[place] = time.monotonic() + PAUSE
                elif self.closed or place < self.first:
                    self.cache.release(descriptor)
                else:
                    self.held[place] = descriptor

    def choose(self) -> tuple[int, Shard] | None:
        """The first place that nobody is at."""
        now = time.monotonic()
        for place in range(self.first, self.stop + self.ahead):
            if place in self.held or place in self.busy or self.not_before.get(place, 0) > now:
                continue
            shard = self.shard_at(place)
            return None if shard is None else (place, shard)
        return None
