"""The samples of one shard, read from a local file: what reads all of a shard, once, needs neither cache nor torch."""

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.data.format.check import Shard
from must.data.format.offsets import load_texts

BLOCK = 512  # bytes of a member's header, which stands right before its data


class Sample(NamedTuple):
    """A sample's key in the shard, the name of its image in the source, and the image file's bytes."""

    key: str
    source: str
    image: bytes


@contextmanager
def local_shard(uri: str, shard: Shard) -> Iterator[Path]:
    """A path at which the tar can be read while the block lasts; that of a bucket is copied, and its sha256 compared.

    Raises:
        ValueError: it is missing, or not the file that the index names.
    """
    name, damaged = shard.place(uri), f"; `must index verify {uri}` tells what is broken"
    try:
        with storage.local_copy(name) as path:
            size = path.stat().st_size
            if size != shard.bytes:
                raise UserError(f"{name} has {size} bytes, its index says {shard.bytes}{damaged}")
            if storage.is_remote(name) and storage.sha256_of(path) != shard.sha256:
                raise UserError(f"{name} is damaged: its sha256 is not the index's{damaged}")
            yield path
    except FileNotFoundError as error:
        if error.filename not in (None, str(storage.local(name))) and not storage.is_remote(name):
            raise
        raise UserError(f"{name} is missing{damaged}") from None


def texts_of(uri: str, shard: Shard, offsets: np.ndarray) -> list[bytes] | None:
    """What is said of each sample of a shard that another program has written; None for one that says it itself.

    Raises:
        ValueError: the file beside the index that holds them is missing or damaged.
    """
    if not shard.file:
        return None
    data = load_texts(uri, shard)
    return [data[start : start + size] for start, size in offsets[:, 2:].tolist()]


def read_samples(path: Path, rows: np.ndarray, texts: list[bytes] | None = None) -> Iterator[Sample]:
    """The samples at `rows` of the shard's table of offsets, int64 [n, 4], in that order.

    Args:
        texts: what is said of these samples, where it is not in the shard.

    Raises:
        ValueError: no sample stands there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, (image, size, text, length) in enumerate(rows.tolist()):
            try:
                name = tarfile.TarInfo.frombuf(
                    read(descriptor, BLOCK, image - BLOCK), tarfile.ENCODING, "surrogateescape"
                ).name
                said = json.loads(read(descriptor, length, text) if texts is None else texts[number])
                source = said["source"]
                data = read(descriptor, size, image)
            except (tarfile.TarError, ValueError, KeyError, TypeError, OSError, RecursionError):
                raise UserError(
                    f"{path.name}: no sample stands at byte {image}, where its table of offsets has one; "
                    "`must index verify` tells what is broken"
                ) from None
            if texts is not None:
                name = name.removeprefix("./")
                if not str(source).endswith(name):  # it was too long for this header
                    name = str(said.get("name", source))
            folder, slash, file = name.rpartition("/")
            yield Sample(folder + slash + file.partition(".")[0], str(source), data)
    finally:
        os.close(descriptor)


def read(descriptor: int, size: int, offset: int) -> bytes:
    """All of the `size` bytes at `offset`. Raises ValueError, OSError: the file is shorter, or `offset` is below 0."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    if len(data) != size:
        raise UserError("the file is shorter")
    return data
