"""Writes WebDataset tars whose bytes depend only on the samples, and records the offset of each member."""

import io
import tarfile
from array import array
from typing import BinaryIO

import numpy as np

from must.base.storage import HashingFile

# A member's header without its name, size and checksum. The constant part of the checksum is the sum of these bytes.
TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)
TEMPLATE_HEAD, MIDDLE, TEMPLATE_TAIL = TEMPLATE[100:124], TEMPLATE[135:148], TEMPLATE[156:]
CHECKSUM = sum(TEMPLATE_HEAD) + sum(MIDDLE) + sum(TEMPLATE_TAIL) + 8 * ord(" ")


class TarWriter:
    """Appends samples to a binary file that is open for writing; `close` ends the tar and leaves the file open.

    Members have mtime 0, owner 0 and mode 0644. The checksum is computed while writing, so the file is not read again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = HashingFile(file)
        self.offsets = array("q")

    def add_sample(self, key: str, extension: str, image: bytes, text: bytes) -> None:
        """Members `key`.`extension` and `key`.json. The key must not have a dot: WebDataset's readers end it there."""
        self.offsets.extend((*self.add(f"{key}.{extension}", image), *self.add(f"{key}.json", text)))

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        header = header_of(name, len(data))
        start = self.position + len(header)
        for part in (header, data, bytes(-len(data) % tarfile.BLOCKSIZE)):
            self.file.write(part)
        return start, len(data)

    def add_raw(self, block: bytes) -> None:
        """Complete members, with headers and padding, copied from another tar; the caller keeps their offsets."""
        assert len(block) % tarfile.BLOCKSIZE == 0
        self.file.write(block)

    def close(self) -> None:
        """Writes two empty blocks, as the format requires, and pads to a record of 20 blocks, as `tar` does."""
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
    """The 512 bytes before a member, the same as those of `tarfile`, which takes five times as long."""
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
