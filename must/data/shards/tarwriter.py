"""Writes WebDataset tars whose bytes depend on nothing but the samples, and notes where each member begins."""

import io
import tarfile
from array import array
from typing import BinaryIO

import numpy as np

from must.base.storage import HashingFile

# A member's header around its name, size and checksum. From these constants' bytes comes the constant share of the sum.
TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)
TEMPLATE_HEAD, MIDDLE, TEMPLATE_TAIL = TEMPLATE[100:124], TEMPLATE[135:148], TEMPLATE[156:]
CHECKSUM = sum(TEMPLATE_HEAD) + sum(MIDDLE) + sum(TEMPLATE_TAIL) + 8 * ord(" ")


class TarWriter:
    """Appends samples to a binary file that is open for writing; `close` ends the tar and leaves the file open.

    Members have mtime 0, owner 0 and mode 0644. The checksum grows along, so that the file need not be read again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = HashingFile(file)
        self.offsets = array("q")

    def add_sample(self, key: str, extension: str, image: bytes, text: bytes) -> None:
        """Members `key`.`extension` and `key`.json. The key holds no dot: it ends there for WebDataset's readers."""
        self.offsets.extend((*self.add(f"{key}.{extension}", image), *self.add(f"{key}.json", text)))

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        header = header_of(name, len(data))
        start = self.position + len(header)
        for part in (header, data, bytes(-len(data) % tarfile.BLOCKSIZE)):
            self.file.write(part)
        return start, len(data)

    def add_raw(self, block: bytes) -> None:
        """Whole members, headers and padding included, copied from another of our tars; offsets are the caller's."""
        assert len(block) % tarfile.BLOCKSIZE == 0
        self.file.write(block)

    def close(self) -> None:
        """Two empty blocks, as the format asks for, and up to a full record of 20 blocks, as `tar` itself writes."""
        end = self.position + 2 * tarfile.BLOCKSIZE
        end += -end % tarfile.RECORDSIZE
        self.add_raw(bytes(end - self.position))

    @property
    def position(self) -> int:
        return self.file.size

    def offset_table(self) -> np.ndarray:
        """int64 [samples, 4]: image offset, image size, json offset, json size."""
        return np.frombuffer(self.offsets, np.int64).reshape(-1, 4).copy()


def header_of(name: str, size: int) -> bytes:
    """The 512 bytes in front of a member, as `tarfile` makes them; it takes five times as long."""
    assert len(name) < 100 and size < 8**11, "a key is short, and --max-file-mb is below 8 GiB"
    fields, digits = name.encode("ascii"), b"%011o" % size
    checksum = CHECKSUM + sum(fields) + sum(digits)
    return b"".join(
        (fields, bytes(100 - len(fields)), TEMPLATE_HEAD, digits, MIDDLE, b"%06o\0 " % checksum, TEMPLATE_TAIL)
    )


def npy(values: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
