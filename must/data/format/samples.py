"""A shard's table of offsets of its samples in the tar, and reading samples from a local file."""

import hashlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.data.format.index import Shard

REINDEX = "delete index.json and run `must index make` again"


def remedy(shard: Shard) -> str:
    """What to do about a table that does not match the index."""
    return REINDEX if shard.file else "run `must shard` again"


def load_offsets(uri: str, shard: Shard) -> np.ndarray:
    """The offsets of each sample's members in the tar: int64 [samples, 4], bytes.

    Columns: image offset, image size, json offset, json size.
    Raises ValueError: the table is missing, damaged or not that of the index.
    """
    return parse_offsets(read_offsets(uri, shard), storage.join(uri, shard.offsets_name), shard)


def read_offsets(uri: str, shard: Shard) -> bytes:
    path = storage.join(uri, shard.offsets_name)
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy(shard)}") from None


def parse_offsets(data: bytes, path: str, shard: Shard) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != shard.offsets_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the index's; {remedy(shard)}")
    try:
        offsets = parse_npy(data)
    except Exception:  # numpy has no common class for errors in a header
        raise UserError(f"{path} is damaged: no .npy file; {remedy(shard)}") from None
    if offsets.shape != (shard.samples, 4) or offsets.dtype != np.int64:
        raise UserError(f"{path} is damaged: int64 [{shard.samples}, 4] expected, not {offsets.dtype} {offsets.shape}")
    members = offsets[:, :2] if shard.file else offsets  # the texts may be in a separate file
    starts, sizes = members[:, ::2], members[:, 1::2]
    if (offsets < 0).any() or (sizes > shard.bytes).any() or (starts > shard.bytes - sizes).any():
        raise UserError(f"{path} is damaged: it points past the end of {shard.name}; {remedy(shard)}")
    return offsets


def load_texts(uri: str, shard: Shard) -> bytes:
    """The descriptions of a shard of another program; the table's last two columns are offsets and sizes in them.
    Raises ValueError: the file is missing, or is not that of the index."""
    path = storage.join(uri, shard.texts_name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {REINDEX}") from None
    if hashlib.sha256(data).hexdigest() != shard.texts_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the index's; {REINDEX}")
    return data


def parse_npy(data: bytes) -> np.ndarray:
    """The content of a .npy file, without a copy, so a header with a wrong size allocates no memory."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise UserError("unknown version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise UserError("not as long as its header says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


class Sample(NamedTuple):
    """A sample's key in the shard, the name of its image in the source, and the image file's bytes."""

    key: str
    source: str
    image: bytes


@contextmanager
def local_shard(uri: str, shard: Shard) -> Iterator[Path]:
    """A local path of the tar within the block; one in a bucket is copied, and its sha256 compared.
    Raises ValueError: it is missing, or is not that of the index."""
    name, hint = shard.location(uri), f"; run `must index verify {uri}` for details"
    try:
        with storage.local_copy(name) as path:
            size = path.stat().st_size
            if size != shard.bytes:
                raise UserError(f"{name} has {size} bytes, its index says {shard.bytes}{hint}")
            if storage.is_remote(name) and storage.sha256_of(path) != shard.sha256:
                raise UserError(f"{name} is damaged: its sha256 is not the index's{hint}")
            yield path
    except FileNotFoundError as error:
        if error.filename not in (None, str(storage.local(name))) and not storage.is_remote(name):
            raise
        raise UserError(f"{name} is missing{hint}") from None


def texts_of(uri: str, shard: Shard, offsets: np.ndarray) -> list[bytes] | None:
    """The descriptions of the samples of a shard of another program; None for a shard that has them in the tar.
    Raises ValueError: the file with them is missing or damaged."""
    if not shard.file:
        return None
    data = load_texts(uri, shard)
    return [data[start : start + size] for start, size in offsets[:, 2:].tolist()]


def read_samples(path: Path, rows: np.ndarray, texts: list[bytes] | None = None) -> Iterator[Sample]:
    """The samples at `rows` of the shard's table of offsets, int64 [n, 4], in that order.
    `texts`: the descriptions of these samples, if they are not in the shard.
    Raises ValueError: no sample at an offset."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, (image, size, text, length) in enumerate(rows.tolist()):
            try:
                name = tarfile.TarInfo.frombuf(
                    read(descriptor, tarfile.BLOCKSIZE, image - tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape"
                ).name
                description = json.loads(read(descriptor, length, text) if texts is None else texts[number])
                source = description["source"]
                data = read(descriptor, size, image)
            except (tarfile.TarError, ValueError, KeyError, TypeError, OSError, RecursionError):
                raise UserError(
                    f"{path.name}: no sample at byte {image}, where its table of offsets has one; check with "
                    "`must index verify`"
                ) from None
            if texts is not None:
                name = name.removeprefix("./")
                if not str(source).endswith(name):  # the name is too long for this header
                    name = str(description.get("name", source))
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
