"""Random access to the samples of a folder of shards, by number."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.parameters import require
from must.base.processes import close, keep_from_children
from must.config.defaults import CACHE_GB
from must.data.format import Index, load_index, load_offsets, require_size
from must.data.loading.cache import GB, ShardCache

OPEN = 32  # default number of shards whose files a reader keeps open


def open_reader(
    uri: str, split: str, cache: str = "", cache_gb: float = CACHE_GB, sha256: str = "", window: int = 1
) -> ShardReader:
    """A reader that reads remote shards through the cache in the folder `cache` ("" means the default folder).
    `sha256`: the expected one of the index, if any; `window`: shards that are read at the same time."""
    reader = ShardReader(uri, split, keep_open=window + 4, sha256=sha256)
    if storage.is_remote(uri):
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "must" / "shards"
        reader.cache = ShardCache(cache or default, int(cache_gb * GB))
        reader.cache.check(reader.shards, window)
    return reader


class OpenShard(NamedTuple):
    file: int | None  # None: there is no room in the cache, each image is read from the bucket
    offsets: np.ndarray


class ShardReader:
    """Sample number -> image bytes and description, for one split of local or remote shards.

    Files are opened when first needed, so that a reader can be handed to worker processes. Without a cache, images of
    remote shards are read one by one."""

    def __init__(
        self, uri: str, split: str, cache: ShardCache | None = None, keep_open: int = OPEN, sha256: str = ""
    ) -> None:
        self.uri, self.split, self.cache, self.keep_open = str(uri), split, cache, keep_open
        self.index: Index = load_index(self.uri, sha256)
        self.shards = self.index.list_shards(split)
        self.sizes = [shard.samples for shard in self.shards]
        require(sum(self.sizes) > 0, f"{uri}: the split '{split}' is empty")
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image(self, sample: int) -> bytes:
        """The bytes of the image file."""
        return self._member(sample, 0)

    def description(self, sample: int) -> dict[str, Any]:
        """{'source': name in the source, 'label': class name or None, ...}"""
        return json.loads(self._member(sample, 2))

    def sources(self, samples: Iterable[int]) -> list[str]:
        """Their names in the source."""
        return [self.description(int(sample)).get("source", "") for sample in samples]

    def sort_as_source(self, samples: list[int], names: list[str]) -> list[int]:
        """The positions in `samples` in the order of the images' source: by row in a list or a table, else by name.
        `names`: in the source, of each sample."""
        rows = [-1] * len(samples)
        if "row" in self.description(samples[0]):
            found = (self.description(sample).get("row") for sample in samples)
            rows = [row if isinstance(row, int) else -1 for row in found]
        return sorted(range(len(samples)), key=lambda position: (rows[position], names[position]))

    def find_shard(self, sample: int) -> int:
        """Number of the shard with this sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def _member(self, sample: int, column: int) -> bytes:
        number = self.find_shard(sample)
        file, offsets = self._shard(number)
        row = offsets[sample - self.starts[number]]
        offset, size = int(row[column]), int(row[column + 1])
        name = storage.join(self.uri, self.shards[number].name)
        data = storage.read_bytes(name, offset, size) if file is None else os.pread(file, size, offset)
        require(len(data) == size, f"{name}: is truncated; run `must index verify {self.uri}` for details")
        return data

    def _shard(self, number: int) -> OpenShard:
        self._after_fork()
        shard = self._open.get(number)
        if shard is None or (shard.file is None and self.cache is not None):
            self._open.pop(number, None)
            self._close(self.keep_open - 1)
            file, load = self._file(number), self.cache.offsets if self.cache is not None else load_offsets
            shard = OpenShard(file, load(self.uri, self.shards[number]) if shard is None else shard.offsets)
            self._open[number] = shard
        self._open.move_to_end(number)
        return shard

    def _file(self, number: int) -> int | None:
        shard = self.shards[number]
        if self.cache is not None:
            file = self.cache.open(self.uri, shard)
            if file is None:  # perhaps this reader has locked the shards that could be evicted
                self._close(len(self._open) - 1)
                file = self.cache.open(self.uri, shard)
            return file
        if storage.is_remote(self.uri):
            return None
        path = storage.local(storage.join(self.uri, shard.name))
        require(path.is_file(), f"{path}: is missing; run `must index verify {self.uri}` for details")
        require_size(path, self.uri, shard)
        return keep_from_children(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _close(self, keep: int) -> None:
        """Closes all shards except the `keep` most recently used ones."""
        while len(self._open) > max(keep, 0):
            _, (file, _) = self._open.popitem(last=False)
            if file is not None:
                close(file)

    def _after_fork(self) -> None:
        """Forgets the parent's open files, which were closed in this process at its start."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open.clear()

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_process") and not is_ending():  # at the interpreter's end modules lose their names
            self._after_fork()
            self._close(0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
