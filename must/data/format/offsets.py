"""The table of offsets beside each shard: where in the tar the members of every sample begin."""

import hashlib
import io
import math

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.data.format.check import Shard

REINDEX = "delete index.json and run `must index make` again"


def again(shard: Shard) -> str:
    """What mends a table that is not the index's."""
    return REINDEX if shard.file else "run `must shard` again"


def load_offsets(uri: str, shard: Shard) -> np.ndarray:
    """Where each sample's members are in the tar: int64 [samples, 4], bytes.

    Columns: image offset, image size, json offset, json size.

    Raises:
        ValueError: the table is missing, damaged or another one than the index names.
    """
    return parse_offsets(read_offsets(uri, shard), storage.join(uri, shard.offsets_name), shard)


def read_offsets(uri: str, shard: Shard) -> bytes:
    path = storage.join(uri, shard.offsets_name)
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {again(shard)}") from None


def parse_offsets(data: bytes, path: str, shard: Shard) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != shard.offsets_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the index's; {again(shard)}")
    try:
        offsets = parse_npy(data)
    except Exception:  # numpy has no one class for what can be wrong with a header
        raise UserError(f"{path} is damaged: no .npy file; {again(shard)}") from None
    if offsets.shape != (shard.samples, 4) or offsets.dtype != np.int64:
        raise UserError(f"{path} is damaged: int64 [{shard.samples}, 4] expected, not {offsets.dtype} {offsets.shape}")
    table = offsets
    if shard.file:  # the texts are in a file of their own
        offsets = offsets[:, :2]
    starts, sizes = offsets[:, ::2], offsets[:, 1::2]
    if (table < 0).any() or (sizes > shard.bytes).any() or (starts > shard.bytes - sizes).any():
        raise UserError(f"{path} is damaged: it points past the end of {shard.name}; {again(shard)}")
    return table


def load_texts(uri: str, shard: Shard) -> bytes:
    """What is said of the samples of a shard that another program has written, in the table's last two columns' terms.

    Raises:
        ValueError: the file is missing, or another one than the index names.
    """
    path = storage.join(uri, shard.texts_name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {REINDEX}") from None
    if hashlib.sha256(data).hexdigest() != shard.texts_sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the index's; {REINDEX}")
    return data


def parse_npy(data: bytes) -> np.ndarray:
    """The content of a .npy file, without a copy: so a header that promises more than there is costs no memory."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise UserError("unknown version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise UserError("not as long as its header says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
