"""One chunk of the listing: reads and checks its files, and writes the valid ones to pieces of shards, one per split.

A chunk depends only on its own files, so chunks are processed in any order by any number of processes, and after a kill
only chunks without a record are processed again. A chunk's record is written after its pieces.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from must.base import storage
from must.base.errors import UserError
from must.data.image import decode as images
from must.data.image.bounds import deadline, limit_memory
from must.data.shards.tarwriter import TarWriter
from must.data.sources.base import Item, Source, UnreadableError

PREFIX = "at-"
CRUMB_BYTES = 1000  # bytes of the position and the name


class Breadcrumb:
    """A context manager: `at` writes down which of a chunk's files is processed next, also for after a kill."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{PREFIX}{number}"

    def __enter__(self) -> Self:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return self

    def at(self, position: int, name: str) -> None:
        # One system call of fixed length: its time is negligible for a file of 100 kB.
        text = b"%d\0" % position + name.encode("utf-8", "surrogateescape")
        os.pwrite(self.file, text[:CRUMB_BYTES].ljust(CRUMB_BYTES, b"\0"), 0)

    def __exit__(self, *error: object) -> None:
        os.close(self.file)
        self.path.unlink(missing_ok=True)


def files_in_progress(folder: Path) -> list[str]:
    """The files that workers were processing when they were killed."""
    texts = [path.read_bytes().rstrip(b"\0").partition(b"\0")[2] for path in folder.glob(f"{PREFIX}*")]
    return sorted(text.decode("utf-8", "surrogateescape") for text in texts if text)


def position_in_progress(folder: Path, number: int) -> int | None:
    """The position of the file that the worker of chunk `number` was processing when it died; None if there is none."""
    try:
        return int((folder / f"{PREFIX}{number}").read_bytes().partition(b"\0")[0])
    except (FileNotFoundError, ValueError):
        return None


def remove_breadcrumbs(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)


READERS = 16  # threads that read from a bucket for one worker; each waits for the network most of the time
NO_NAMES = np.empty((0, 2), np.uint64)
AHEAD = 256_000_000  # bytes that they may hold, by the sizes in the listing


@dataclass(frozen=True)
class Settings:
    """The settings that determine a shard's bytes."""

    split: dict[str, float]
    resize: int
    quality: int
    validate: str
    max_pixels: int
    max_bytes: int


@dataclass(frozen=True)
class Chunk:
    """Chunk `number`: bytes [start, stop) of the file `plan`, which are `files` lines. `split` is the split of all
    files; "" means by hash."""

    number: int
    source: Source
    plan: Path
    start: int
    stop: int
    files: int
    split: str


@dataclass
class ChunkResult:
    """The results for a chunk's files."""

    number: int
    hashes: dict[str, np.ndarray] = field(default_factory=dict)  # split -> uint8 [samples, 32]: the files' sha256
    offsets: dict[str, np.ndarray] = field(default_factory=dict)  # split -> int64 [samples, 4], in the piece
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> its "sha256", "bytes" and "labelled"
    names: np.ndarray = field(default_factory=lambda: NO_NAMES)  # uint64 [accepted, 2]: hashes of accepted files' names
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    labels: list[str] = field(default_factory=list)
    files: int = 0
    read_bytes: int = 0

    def to_bytes(self) -> bytes:
        meta = {name: getattr(self, name) for name in ("number", "pieces", "rejected", "labels", "files", "read_bytes")}
        arrays = {f"hashes.{split}": values for split, values in self.hashes.items()}
        arrays |= {f"offsets.{split}": values for split, values in self.offsets.items()}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            names=self.names,
            **arrays,  # type: ignore[arg-type]
        )
        return buffer.getvalue()

    @staticmethod
    def read(path: Path) -> ChunkResult:
        with np.load(path, allow_pickle=False) as content:
            meta = json.loads(content["meta"].tobytes())
            splits = list(meta["pieces"])
            return ChunkResult(
                hashes={split: content[f"hashes.{split}"] for split in splits},
                offsets={split: content[f"offsets.{split}"] for split in splits},
                names=content["names"],
                **meta,
            )


class Done(NamedTuple):
    """The numbers of a finished chunk for the progress bar."""

    number: int
    files: int
    rejected: int
    read_bytes: int


def piece_name(number: int, split: str) -> str:
    return f"unit-{number:06d}.{split}.tar"


def record_name(number: int) -> str:
    return f"unit-{number:06d}.npz"


def process_chunk(
    chunk: Chunk, settings: Settings, work: str, records: Path, crumbs: Path, rejected: dict[int, str]
) -> Done:
    """Writes the chunk's pieces to `work` and its record to `work` and to the local folder `records`.

    The local folder `crumbs`, which only this program uses, shows which file is being processed. An image that takes
    much more time than its header may announce ends this process; one that takes much more memory is rejected.
    `rejected`: position in the chunk -> reason, for files that have ended a process before.
    """
    limit_memory(settings.max_pixels, AHEAD + 2 * settings.max_bytes)
    record = ChunkResult(chunk.number)
    hashes: dict[str, list[bytes]] = {}
    labels: set[str] = set()
    names: list[bytes] = []
    writers: dict[str, TarWriter] = {}
    with ExitStack() as stack:
        breadcrumb = stack.enter_context(Breadcrumb(crumbs, chunk.number))
        for position, (item, data) in enumerate(prefetched(chunk, settings)):
            breadcrumb.at(position, item.name)
            record.files += 1
            try:
                if isinstance(data, Exception):
                    raise data
                if position in rejected:
                    raise UserError(rejected[position])
                record.read_bytes += len(data)
                with deadline(settings.max_pixels):
                    extension, stored = checked_image(data, settings)
            except (ValueError, UnreadableError, OSError, MemoryError) as error:
                record.rejected.append((item.name, rejection_reason(error)))
                continue
            digest = hashlib.sha256(data).digest()
            split = chunk.split or item.split or split_of(digest, settings.split)
            if split not in writers:
                file = stack.enter_context(storage.open_write(storage.join(work, piece_name(chunk.number, split))))
                writers[split] = TarWriter(file)
                hashes[split] = []
                record.pieces[split] = {"labelled": 0}
            text = {"source": item.name, "label": item.label, "sha256": digest.hex()}
            key = f"{chunk.number:06d}-{position:06d}"
            writers[split].add_sample(key, extension, stored, json.dumps(text).encode())
            hashes[split].append(digest)
            names.append(name_hash(chunk.source.uri, item.name))
            if item.label is not None:
                labels.add(item.label)
                record.pieces[split]["labelled"] += 1
        for split, writer in writers.items():
            writer.close()
            record.offsets[split] = writer.offset_table()
            record.hashes[split] = np.frombuffer(b"".join(hashes[split]), np.uint8).reshape(-1, 32)
            record.pieces[split] |= {"sha256": writer.file.sha256, "bytes": writer.position}
    record.labels = sorted(labels)
    record.names = np.frombuffer(b"".join(names), ">u8").astype(np.uint64).reshape(-1, 2)
    data = record.to_bytes()
    if storage.is_remote(work):
        storage.write_bytes(storage.join(work, record_name(chunk.number)), data)
    storage.write_bytes(records / record_name(chunk.number), data)
    return Done(chunk.number, record.files, len(record.rejected), record.read_bytes)


def checked_image(data: bytes, settings: Settings) -> tuple[str, bytes]:
    """(extension, bytes to store) of an image file. Raises ValueError with the reason if it is not a valid image."""
    if len(data) > settings.max_bytes:
        raise UserError(f"more than {settings.max_bytes} bytes")
    header = images.identify(data, settings.max_pixels)
    if settings.resize and min(header.size) > settings.resize:
        return "jpg", resized(data, settings)
    if settings.validate == "decode":
        images.check(header)
    return images.extension(header), data


def resized(data: bytes, settings: Settings) -> bytes:
    """A JPEG whose shorter side is `settings.resize`, without orientation and transparency."""
    picture = images.decode(data, settings.max_pixels, shorter_side=settings.resize)
    scale = settings.resize / min(picture.size)
    width, height = (max(settings.resize, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=settings.quality)
    return buffer.getvalue()


def split_of(digest: bytes, shares: dict[str, float]) -> str:
    """A split by the hash of the content: an image gets the same split in every run, with any other files."""
    fraction, total = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in shares.items():
        total += share
        if fraction < total:
            return name
    return [name for name, share in shares.items() if share > 0][-1]  # the sum of the shares was slightly below 1


def name_hash(uri: str, name: str) -> bytes:
    """A hash of 16 bytes of a file's name and source, by which --append recognizes files of earlier revisions."""
    text = f"{uri.rstrip('/')}\0{name}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def prefetched(chunk: Chunk, settings: Settings) -> Iterator[tuple[Item, bytes | Exception]]:
    """The chunk's files in order, each with its bytes or the error of reading it."""

    def read(item: Item) -> bytes | Exception:
        if item.size > settings.max_bytes:
            return UnreadableError(f"more than {settings.max_bytes} bytes")
        try:
            return chunk.source.read(item, settings.max_bytes + 1)
        except FileNotFoundError:
            return UnreadableError("there is no such file")
        except (UnreadableError, OSError) as error:
            return error
        except UserError as error:  # such as missing credentials
            raise UserError(f"{chunk.source.uri}: {item.name}: {error}") from None

    items = read_chunk(chunk.plan, chunk.start, chunk.stop)
    if not chunk.source.may_be_remote:
        yield from ((item, read(item)) for item in items)
        return
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[Item, Future[bytes | Exception]]] = deque()
        size = 0
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            size += item.size
            while len(waiting) >= 2 * READERS or (size > AHEAD and waiting):
                first, future = waiting.popleft()
                size -= first.size
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def rejection_reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


def read_chunk(path: Path, start: int, stop: int) -> Iterator[Item]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file.read(stop - start).splitlines():
            yield Item(*json.loads(line))
