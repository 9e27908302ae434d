"""What the workers do: a chunk's valid files become tars, one for each split, and the chunks' tars become shards.

A chunk depends only on its own files, so chunks are processed in any order by any number of processes, and after a kill
only chunks without a record are processed again. A chunk's record is written after its tars. A shard is a chunk's tar,
renamed, or several small ones and those with dropped samples, joined."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, BinaryIO

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.processes import write_note
from must.config import ShardConfig
from must.data.format import Shard, parse_hashes, write_table
from must.data.image import decode as images
from must.data.image.limits import limits
from must.data.image.preprocess import Levels, find_levels, find_tone
from must.data.shards.listing import Chunk, find_size_limit, identify_source, name_hash
from must.data.shards.workdir import Workdir
from must.data.sources.files import Item, UnreadableError

# A member's header without its name, size and checksum. The constant part of the checksum is the sum of these bytes.
TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)
TEMPLATE_HEAD, MIDDLE, TEMPLATE_TAIL = TEMPLATE[100:124], TEMPLATE[135:148], TEMPLATE[156:]
CHECKSUM = sum(TEMPLATE_HEAD) + sum(MIDDLE) + sum(TEMPLATE_TAIL) + 8 * ord(" ")
WRITE_BEHIND = 16 << 20  # bytes after which a tar is sent to the disk


class TarWriter:
    """Appends samples to a binary file that is open for writing; `close` ends the tar and leaves the file open.

    Members have mtime 0, owner 0 and mode 0644. The checksum is computed while writing, so the file is not read again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.target, self.file = file, storage.HashingFile(file)
        self.offsets = array("q")  # of each sample: image offset, image size, json offset, json size
        self.hashes = bytearray()  # the first 8 bytes of the sha256 of each sample's file
        self.labelled = 0
        self.on_disk = 0  # bytes that the system has been told to write

    def add_sample(self, key: str, extension: str, image: bytes, text: bytes) -> None:
        """Members `key`.`extension` and `key`.json. The key must not have a dot: WebDataset's readers end it there."""
        start = self.position + BLOCKSIZE
        self.file.write(make_header(f"{key}.{extension}", len(image)))
        self.file.write(image)
        between = make_padding(image) + make_header(f"{key}.json", len(text))
        self.offsets.extend((start, len(image), start + len(image) + len(between), len(text)))
        self.file.write(between + text + make_padding(text))
        if self.position - self.on_disk > WRITE_BEHIND:
            self.on_disk = storage.start_writing(self.target, self.on_disk, self.position)

    def add_raw(self, block: bytes) -> None:
        """Complete members, with headers and padding, copied from another tar; the caller keeps their offsets."""
        assert len(block) % BLOCKSIZE == 0
        self.file.write(block)

    def close(self) -> None:
        """Writes two empty blocks, as the format requires, and pads to a record of 20 blocks, as `tar` does."""
        end = self.position + 2 * BLOCKSIZE
        end += -end % tarfile.RECORDSIZE
        self.add_raw(bytes(end - self.position))

    @property
    def position(self) -> int:
        return self.file.size

    def describe(self) -> dict[str, Any]:
        return {"sha256": self.file.sha256, "bytes": self.position, "labelled": self.labelled}


def make_padding(data: bytes) -> bytes:
    return bytes(-len(data) % BLOCKSIZE)


def make_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member, the same as those of `tarfile`, which takes five times as long."""
    assert len(name) < 100 and size < 8**11, "a key is short, and --max-file-mb is below 8 GiB"
    fields, digits = name.encode("ascii"), b"%011o" % size
    checksum = CHECKSUM + sum(fields) + sum(digits)
    return b"".join(
        (fields, bytes(100 - len(fields)), TEMPLATE_HEAD, digits, MIDDLE, b"%06o\0 " % checksum, TEMPLATE_TAIL)
    )


READERS = 16  # threads that read from a bucket for one worker; each waits for the network most of the time
AHEAD = 256_000_000  # bytes that they may hold, by the sizes in the listing


@dataclass
class ChunkResult:
    """The results for a chunk's files. `arrays`: "names", uint64 [accepted], hashes of the files' names; of each split
    "hashes.SPLIT", uint64 [samples], of the files' sha256, and "offsets.SPLIT", int64 [samples, 4], in the tar;
    "levels", float64 [images of more than 8 bits, 2]."""

    number: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tars: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> its "sha256", "bytes" and "labelled"
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    other: int = 0  # files without a suffix that are no images
    tones: dict[str, int] = field(default_factory=dict)  # "black", "white": images of 8 bits that are almost that
    labels: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        others = {name: value for name, value in vars(self).items() if name != "arrays"}
        buffer = io.BytesIO()
        np.savez(buffer, others=np.frombuffer(json.dumps(others).encode(), np.uint8), **self.arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @staticmethod
    def read(path: Path) -> ChunkResult:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        others = json.loads(arrays.pop("others").tobytes())
        return ChunkResult(arrays=arrays, **others)


def process_chunk(chunk: Chunk, config: ShardConfig, work: Workdir, rejected: dict[int, str]) -> tuple[int, int]:
    """Writes the chunk's tars and its record. Returns the numbers of its files and of the rejected ones.

    The worker's note is "POSITION NAME" of the file that is being processed. An image that takes too much time ends
    this process. `rejected`: position in the chunk -> reason, for files that have ended a process before."""
    others = AHEAD + 2 * find_size_limit(config) if chunk.source.may_be_remote else 0
    record = ChunkResult(chunk.number)
    writers: dict[str, TarWriter] = {}
    levels = list[Levels]()
    names, labels, source = bytearray(), set[str](), identify_source(chunk.source.uri)
    with ExitStack() as stack:
        for position, (item, data) in enumerate(prefetch_files(chunk, config)):
            write_note(b"%d " % position + item.name.encode("utf-8", "surrogateescape"))
            try:
                if isinstance(data, Exception):
                    raise data
                if position in rejected:
                    raise UserError(rejected[position])
                with limits(config.max_pixels, len(data), others):
                    extension, stored, found, tone = check_image(data, config)
            except (ValueError, UnreadableError, OSError, MemoryError) as error:
                if is_other_file(item.name, data):
                    record.other += 1
                else:
                    record.rejected.append((item.name, explain_rejection(error)))
                continue
            levels += [found] if found else []
            if tone:
                record.tones[tone] = record.tones.get(tone, 0) + 1
            digest = hashlib.sha256(data).digest()
            split = chunk.split or item.split or split_by_hash(digest, config.split)
            if split not in writers:
                file = stack.enter_context(storage.open_write(work.tar(chunk.number, split)))
                writers[split] = TarWriter(file)
            text: dict[str, str | int | None] = {"source": item.name, "label": item.label, "sha256": digest.hex()}
            text |= {} if item.row is None else {"row": item.row}
            key = f"{chunk.number:06d}-{position:06d}"
            writers[split].add_sample(key, extension, stored, json.dumps(text).encode())
            writers[split].hashes += digest[:8]
            names += name_hash(source, item.name)
            if item.label is not None:
                labels.add(item.label)
                writers[split].labelled += 1
        for split, writer in writers.items():
            writer.close()
            record.arrays[f"offsets.{split}"] = np.array(writer.offsets, np.int64).reshape(-1, 4)
            record.arrays[f"hashes.{split}"] = parse_hashes(writer.hashes)
            record.tars[split] = writer.describe()
    record.labels, record.arrays["names"] = sorted(labels), parse_hashes(names)
    record.arrays["levels"] = np.array(levels, np.float64).reshape(-1, 2)
    storage.write_bytes(work.record(chunk.number), record.to_bytes())
    return chunk.files, len(record.rejected)


def check_image(data: bytes, config: ShardConfig) -> tuple[str, bytes, Levels, str]:
    """(extension, bytes to store, levels, tone) of an image file."""
    if len(data) > find_size_limit(config):
        raise UserError(f"more than {find_size_limit(config)} bytes")
    header = images.identify(data, config.max_pixels)
    images.check(header)
    levels = find_levels(header)
    return images.find_extension(header), data, levels, "" if levels else find_tone(header)


def split_by_hash(digest: bytes, shares: dict[str, float]) -> str:
    """A split by the hash of the content: an image gets the same split in every run, with any other files."""
    fraction, total = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in shares.items():
        total += share
        if fraction < total:
            return name
    return [name for name, share in shares.items() if share > 0][-1]  # the sum of the shares was slightly below 1


def prefetch_files(chunk: Chunk, config: ShardConfig) -> Iterator[tuple[Item, bytes | Exception]]:
    """The chunk's files in order, each with its bytes or the error of reading it."""

    def read(item: Item) -> bytes | Exception:
        if item.size > find_size_limit(config):
            return UnreadableError(f"more than {find_size_limit(config)} bytes")
        try:
            return chunk.source.read(item, find_size_limit(config) + 1)
        except FileNotFoundError:
            return UnreadableError("there is no such file")
        except (UnreadableError, OSError) as error:
            return error
        except UserError as error:  # such as missing credentials
            raise UserError(f"{chunk.source.uri}: {item.name}: {error}") from None

    if not chunk.source.may_be_remote:
        yield from ((item, read(item)) for item in chunk.read())
        return
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[Item, Future[bytes | Exception]]] = deque()
        size = 0
        for item in chunk.read():
            waiting.append((item, pool.submit(read, item)))
            size += item.size
            while len(waiting) >= 2 * READERS or (size > AHEAD and waiting):
                first, future = waiting.popleft()
                size -= first.size
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


# Of formats that are recognized by their first bytes; a BMP's, PPM's or TGA's may begin a text too.
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


def is_other_file(name: str, data: bytes | Exception) -> bool:
    """Whether a file that cannot be decoded is no damaged image: its name has no suffix, and its bytes no signature."""
    if isinstance(data, Exception) or "." in name.rpartition("/")[2]:
        return False
    return not data.startswith(SIGNATURES) and data[4:8] != b"ftyp"


def explain_rejection(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


COPY = 8 << 20  # bytes per read while joining tars


@dataclass(frozen=True)
class ShardJob:
    """The shard `name`: of these chunks, in order, the samples of one split."""

    name: str
    split: str
    chunks: list[tuple[int, list[int]]]  # (chunk, positions of the samples that are dropped, ascending)


def assemble(job: ShardJob, work: Workdir) -> Shard:
    """Writes a shard and its table of offsets."""
    (number, drop), *others = job.chunks
    target = storage.join(work.output, job.name)
    if drop or others:
        tar, table = join_tars(job, work, target)
    else:
        record = ChunkResult.read(work.local_record(number))
        tar, table = record.tars[job.split], record.arrays[f"offsets.{job.split}"]
        move_tar(work.tar(number, job.split), target, tar["bytes"])
    offsets = write_table(table, target.removesuffix(".tar") + ".npy")
    return Shard(job.name, job.split, len(table), offsets_sha256=offsets["sha256"], **tar)


def move_tar(source: str, target: str, size: int) -> None:
    """Renames a tar, unless an earlier run has done so before it was killed."""
    try:
        storage.move(source, target)
    except FileNotFoundError:
        if not storage.exists(target) or storage.size(target) != size:
            raise


def join_tars(job: ShardJob, work: Workdir, target: str) -> tuple[dict[str, Any], np.ndarray]:
    """Writes the shard. Returns its sha256, bytes and labelled samples, and the table of offsets."""
    tables = []
    with storage.open_write(target) as file:
        writer = TarWriter(file)
        for number, drop in job.chunks:
            record, tar = ChunkResult.read(work.local_record(number)), work.tar(number, job.split)
            table = record.arrays[f"offsets.{job.split}"]
            starts, stops = table[:, 0] - BLOCKSIZE, -(-(table[:, 2] + table[:, 3]) // BLOCKSIZE) * BLOCKSIZE
            writer.labelled += record.tars[job.split]["labelled"]
            for sample in drop:
                text = storage.read_bytes(tar, int(table[sample, 2]), int(table[sample, 3]))
                writer.labelled -= json.loads(text)["label"] is not None
            samples = np.delete(np.arange(len(table)), drop)
            for run in np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1):  # consecutive samples
                start, stop = int(starts[run[0]]), int(stops[run[-1]])
                tables.append(table[run] + np.array([1, 0, 1, 0]) * (writer.position - start))
                for offset in range(start, stop, COPY):
                    writer.add_raw(storage.read_bytes(tar, offset, min(COPY, stop - offset)))
        writer.close()
    return writer.describe(), np.concatenate(tables)
