"""Random access to the samples of a folder of shards, by number."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from must import storage
from must.data.index import Index, load_index, load_offsets


class ShardReader:
    """Sample number -> image bytes and description, for one split of local or remote shards.

    Files are opened when first needed, so that a reader can be handed to worker processes.

    Raises:
        ValueError: no index, an unknown split, or an empty one.
    """

    def __init__(self, uri: str, split: str, cache: Any | None = None) -> None:
        self.uri, self.split, self.cache = str(uri), split, cache
        self.index: Index = load_index(self.uri)
        self.shards = self.index.shards_of(split)
        self.sizes = [shard.samples for shard in self.shards]
        if not sum(self.sizes):
            raise ValueError(f"{uri}: the split '{split}' is empty")
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._files: dict[int, int] = {}
        self._offsets: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image(self, sample: int) -> bytes:
        """The bytes of the image file. Raises ValueError: the shard is shorter than its index says."""
        return self._member(sample, 0)

    def description(self, sample: int) -> dict[str, Any]:
        """{'source': where it came from, 'label': class name or None, ...}"""
        return json.loads(self._member(sample, 2))

    def _member(self, sample: int, column: int) -> bytes:
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        if number not in self._offsets:
            self._offsets[number] = load_offsets(self.uri, self.shards[number])
        row = self._offsets[number][sample - self.starts[number]]
        offset, size = int(row[column]), int(row[column + 1])
        data = self._read(number, offset, size)
        if len(data) != size:
            name = storage.join(self.uri, self.shards[number].name)
            raise ValueError(f"{name}: is truncated; `must index verify {self.uri}` tells what is broken")
        return data

    def _read(self, number: int, offset: int, size: int) -> bytes:
        if storage.is_remote(self.uri) and self.cache is None:
            return storage.read_bytes(storage.join(self.uri, self.shards[number].name), offset, size)
        if number not in self._files:
            self._files[number] = os.open(self._path(number), os.O_RDONLY)
        return os.pread(self._files[number], size, offset)

    def _path(self, number: int) -> Path:
        shard = self.shards[number]
        if self.cache is not None:
            return self.cache.fetch(self.uri, shard)
        path = Path(storage.join(self.uri, shard.name))
        if not path.is_file():
            raise ValueError(f"{path}: is missing; `must index verify {self.uri}` tells what is broken")
        return path

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}
