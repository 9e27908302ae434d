"""Shards as a webdataset pipeline, for loops of one's own: `must.open_shards`.

Training does not read this way: a pipeline is a stream, which cannot go on in the middle and which workers and
processes share out by whole shards. See docs/data.md.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from must.base import storage
from must.data.format.index import Index, load_index
from must.data.image.decode import decode, reason

try:
    import webdataset
    from webdataset.cache import StreamingOpen
except ModuleNotFoundError as error:
    if error.name != "webdataset":
        raise
    raise ModuleNotFoundError(
        "must.open_shards needs the package webdataset: pip install 'must-clip[webdataset]'", name="webdataset"
    ) from None

NO_LABEL = -1
AT_ONCE = 8 << 20  # bytes asked of a bucket at a time


def open_shards(uri: str, split: str = "train", transform: Callable[[Any], Any] | None = None) -> Any:
    """A `webdataset.WebDataset` over a split, in the order of the shards, ready for `.shuffle`, `.batched` and so on.

    Samples are mappings: `image`, what `transform` makes of the RGB picture (the Pillow image itself without one);
    `label`, the class's number in the dataset's `classes`, -1 without a label; `source`, where the image came from.
    Pixels are those that training sees: upright, on white, of 8 bits. An image that cannot be decoded is left out with
    a warning. Processes and workers share out whole shards, each its own.

    Args:
        uri: a folder of shards made by `must shard`, here or in a bucket.

    Raises:
        ValueError: no shards there, or no such split.
    """
    index = load_index(uri)
    shards = index.shards_of(split)
    if any(shard.file for shard in shards):
        raise ValueError(f"{uri}: an index of shards that another program has written; webdataset reads those itself")
    names = [shard.name for shard in shards]
    if not names:
        raise ValueError(f"{uri}: the split '{split}' is empty")
    dataset = webdataset.WebDataset(
        [storage.join(uri, name) for name in names],
        shardshuffle=False,
        nodesplitter=webdataset.split_by_node,
        empty_check=False,  # of more workers than shards some have nothing to do
    )
    # Its own opener takes part of a path for a query, and fetches from buckets by command-line tools.
    dataset.pipeline = [Opener() if isinstance(stage, StreamingOpen) else stage for stage in dataset.pipeline]
    dataset.classes = index.labels
    return dataset.map(Decoder(index, transform), handler=webdataset.warn_and_continue)


class Opener:
    """Shards' URIs to open streams. The pipeline's stage, which goes to worker processes."""

    def __call__(self, urls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for url in urls:
            with opened(url["url"]) as stream:
                yield {"url": url["url"], "stream": stream}


class Decoder:
    """A tar's members of one key to a sample."""

    def __init__(self, index: Index, transform: Callable[[Any], Any] | None) -> None:
        self.numbers = {name: number for number, name in enumerate(index.labels)}
        self.max_pixels, self.transform = index.max_pixels, transform

    def __call__(self, members: dict[str, Any]) -> dict[str, Any]:
        description = json.loads(members["json"])
        (data,) = (data for name, data in members.items() if name != "json" and not name.startswith("__"))
        try:
            image = decode(data, self.max_pixels)
        except Exception as error:
            raise ValueError(f"{members['__url__']}: {members['__key__']}: {reason(error)}") from error
        return {
            "image": self.transform(image) if self.transform else image,
            "label": self.numbers.get(description.get("label"), NO_LABEL),
            "source": description.get("source", ""),
        }


def opened(uri: str) -> Any:
    if storage.is_remote(uri):
        return io.BufferedReader(RemoteFile(uri), AT_ONCE)
    return storage.local(uri).open("rb")


class RemoteFile(io.RawIOBase):
    """An object in a bucket as a stream, read in pieces by the store's own client and its retries."""

    def __init__(self, uri: str) -> None:
        self.uri, self.at, self.end = uri, 0, storage.size(uri)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.end - self.at)
        data = storage.read_bytes(self.uri, self.at, wanted) if wanted else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
