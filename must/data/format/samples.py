"""A shard's table of offsets of its samples in the tar, and `must index verify`."""

import hashlib
import io
import json
import logging
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import printable
from must.data.format.index import Index, Shard, load_index

logger = logging.getLogger(__name__)

MAKE_AGAIN = "run `must shard` again"


def load_offsets(uri: str, shard: Shard) -> np.ndarray:
    """The offsets of each sample's members in the tar: int64 [samples, 4], bytes.

    Columns: image offset, image size, json offset, json size."""
    data = read_file(uri, shard.offsets_name, shard.offsets_sha256)
    return parse_offsets(data, storage.join(uri, shard.offsets_name), shard)


def read_file(uri: str, name: str, sha256: str, hint: str = MAKE_AGAIN) -> bytes:
    path = storage.join(uri, name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {hint}") from None
    require(hashlib.sha256(data).hexdigest() == sha256, f"{path} is damaged: its sha256 is not the index's; {hint}")
    return data


def parse_offsets(data: bytes, path: str, shard: Shard) -> np.ndarray:
    """The table in the bytes of a .npy file, which are untrusted: without a copy, so a header allocates no memory."""
    file, expected = io.BytesIO(data), ((1, 0), (shard.samples, 4), False, np.dtype(np.int64))
    try:
        header = np.lib.format.read_magic(file), *np.lib.format.read_array_header_1_0(file)
    except Exception:  # numpy has no common class for errors in a header
        header = None
    if header != expected or len(data) - file.tell() != 32 * shard.samples:
        raise UserError(f"{path} is damaged: no .npy file of int64 [{shard.samples}, 4]; {MAKE_AGAIN}")
    offsets = np.frombuffer(data, np.int64, offset=file.tell()).reshape(-1, 4)
    starts, sizes = offsets[:, ::2], offsets[:, 1::2]
    if (offsets < 0).any() or (sizes > shard.bytes).any() or (starts > shard.bytes - sizes).any():
        raise UserError(f"{path} is damaged: it points past the end of {shard.name}; {MAKE_AGAIN}")
    return offsets


def require_size(path: Path, uri: str, shard: Shard) -> None:
    """Raises ValueError: the tar is not as long as its index says; the offsets in its table are compared with that."""
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(
            f"{storage.join(uri, shard.name)} has {size} bytes, its index says {shard.bytes}; run `must index verify "
            f"{uri}` for details"
        )


def check_samples(path: Path, offsets: np.ndarray) -> None:
    """Raises UserError: a row of the table of offsets, int64 [n, 4], is not that of a sample in the tar."""
    with path.open("rb") as file:
        for image, _, text, length in offsets.tolist():
            try:
                header = read(file, tarfile.BLOCKSIZE, image - tarfile.BLOCKSIZE)
                tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
                json.loads(read(file, length, text))["source"]
            except (tarfile.TarError, ValueError, KeyError, TypeError, OSError, RecursionError):
                raise UserError(
                    f"{path.name}: no sample at byte {image}, where its table of offsets has one; {MAKE_AGAIN}"
                ) from None


def read(file: BinaryIO, size: int, offset: int) -> bytes:
    """All of the `size` bytes at `offset`. Raises ValueError, OSError: the file is shorter, or `offset` is below 0."""
    file.seek(offset)
    data = file.read(size)
    require(len(data) == size, "the file is shorter")
    return data


def verify(uri: str) -> Index:
    """Reads all files of an index; prints a line for each that is damaged."""
    index = load_index(uri)
    faults: dict[str, str] = {}
    checks: list[tuple[str, Callable[[], object]]]
    checks = [(shard.name, partial(check_shard, uri, shard)) for shard in index.shards]
    checks += [(table["name"], partial(read_file, uri, **table)) for table in index.tables]
    for name, check in bar(checks, desc="verify", unit="file"):
        try:
            check()
        except UserError as error:
            faults[name] = f"{name}: {error}"
            with tqdm.external_write_mode(file=sys.stdout):
                logger.info(printable(faults[name]))
    if faults:
        broken = len([name for name in faults if name.endswith(".tar")])
        problem = f"{broken} of {len(index.shards)} shards are broken" if broken else "--append's tables are broken"
        raise UserError(f"{uri}: {problem}; the first fault: {next(iter(faults.values()))}")
    logger.info(f"{uri}: {len(index.shards)} shards, {sum(s.samples for s in index.shards)} images, all whole")
    return index


def check_shard(uri: str, shard: Shard) -> None:
    """Raises UserError: something is wrong with the shard, its table or a sample in it."""
    location = storage.join(uri, shard.name)
    try:
        size = storage.size(location)
        require(size == shard.bytes, f"{size} bytes instead of {shard.bytes}")
        with storage.local_copy(location) as path:
            require(storage.compute_sha256(path) == shard.sha256, "its bytes have changed (sha256)")
            check_samples(path, load_offsets(uri, shard))
    except FileNotFoundError:
        raise UserError("missing") from None
