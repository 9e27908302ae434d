"""Random access to the samples of a folder of shards, by number; the cache of remote shards, and their prefetching.

The cache is a folder on a node's disk: limited in size, shared, and consistent after a kill. A shard's file is named by
its sha256, so it is never stale, whichever run or revision has downloaded it. It is downloaded under another name, and
renamed when it is complete and has the sha256 in the index. All processes of the node use the folder at the same time,
synchronized by the operating system's file locks (`flock`): a reader of a shard has a shared lock, a download or an
eviction an exclusive one. The locks of a killed process are released."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.lock import in_turn
from must.base.parameters import convert, require
from must.base.processes import DaemonThreads, close, keep_from_children
from must.data.format import Index, Shard, load_index, load_offsets, require_size

Value = TypeVar("Value")

OPEN = 32  # default number of shards whose files a reader keeps open
GB = 10**9
SPARE = 200_000_000  # bytes of the disk that are never used
DOWNLOAD_TRIES = 2  # downloads of a shard whose bytes are wrong
CACHE_GB = "MUST_CACHE_GB"  # environment variable: the largest size of the cache, for all runs of the machine
DOWNLOADS = 4  # of shards, at the same time
DOWNLOAD_PAUSE = 1.0  # seconds until a retry, after no room for a shard or while another process downloads it


def open_reader(uri: str, split: str, sha256: str = "", window: int = 1) -> ShardReader:
    """A reader that reads remote shards through this machine's cache (XDG_CACHE_HOME, MUST_CACHE_GB).
    `sha256`: the expected one of the index, if any; `window`: shards that are read at the same time."""
    reader = ShardReader(uri, split, keep_open=window + 4, sha256=sha256)
    if storage.is_remote(uri):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "must" / "shards"
        gigabytes = convert(os.environ.get(CACHE_GB) or 30.0, float, CACHE_GB)
        require(gigabytes > 0, f"{CACHE_GB} must be above 0")
        reader.cache = ShardCache(folder, int(gigabytes * GB))
        reader.cache.check(reader.shards, window)
    return reader


class OpenShard(NamedTuple):
    file: int | None  # None: there is no room in the cache, each image is read from the bucket
    offsets: np.ndarray


class ShardReader:
    """Sample number -> image bytes and description, for one split of local or remote shards.

    Files are opened when first needed, so that a reader can be handed to worker processes. Without a cache, images of
    remote shards are read one by one."""

    def __init__(
        self, uri: str, split: str, cache: ShardCache | None = None, keep_open: int = OPEN, sha256: str = ""
    ) -> None:
        self.uri, self.split, self.cache, self.keep_open = str(uri), split, cache, keep_open
        self.index: Index = load_index(self.uri, sha256)
        self.shards = self.index.list_shards(split)
        self.sizes = [shard.samples for shard in self.shards]
        require(sum(self.sizes) > 0, f"{uri}: the split '{split}' is empty")
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image(self, sample: int) -> bytes:
        """The bytes of the image file."""
        return self._member(sample, 0)

    def description(self, sample: int) -> dict[str, Any]:
        """{'source': name in the source, 'label': class name or None, ...}"""
        return json.loads(self._member(sample, 2))

    def sources(self, samples: Iterable[int]) -> list[str]:
        """Their names in the source."""
        return [self.description(int(sample)).get("source", "") for sample in samples]

    def sort_as_source(self, samples: list[int], names: list[str]) -> list[int]:
        """The positions in `samples` in the order of the images' source: by row in a list or a table, else by name.
        `names`: in the source, of each sample."""
        rows = [-1] * len(samples)
        if "row" in self.description(samples[0]):
            found = (self.description(sample).get("row") for sample in samples)
            rows = [row if isinstance(row, int) else -1 for row in found]
        return sorted(range(len(samples)), key=lambda position: (rows[position], names[position]))

    def find_shard(self, sample: int) -> int:
        """Number of the shard with this sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def _member(self, sample: int, column: int) -> bytes:
        number = self.find_shard(sample)
        file, offsets = self._shard(number)
        row = offsets[sample - self.starts[number]]
        offset, size = int(row[column]), int(row[column + 1])
        name = storage.join(self.uri, self.shards[number].name)
        data = storage.read_bytes(name, offset, size) if file is None else os.pread(file, size, offset)
        require(len(data) == size, f"{name}: is truncated; run `must index verify {self.uri}` for details")
        return data

    def _shard(self, number: int) -> OpenShard:
        self._after_fork()
        shard = self._open.get(number)
        if shard is None or (shard.file is None and self.cache is not None):
            self._open.pop(number, None)
            self._close(self.keep_open - 1)
            file = self._file(number)
            shard = OpenShard(file, load_offsets(self.uri, self.shards[number]) if shard is None else shard.offsets)
            self._open[number] = shard
        self._open.move_to_end(number)
        return shard

    def _file(self, number: int) -> int | None:
        shard = self.shards[number]
        if self.cache is not None:
            file = self.cache.open(self.uri, shard)
            if file is None:  # perhaps this reader has locked the shards that could be evicted
                self._close(len(self._open) - 1)
                file = self.cache.open(self.uri, shard)
            return file
        if storage.is_remote(self.uri):
            return None
        path = storage.local(storage.join(self.uri, shard.name))
        require(path.is_file(), f"{path}: is missing; run `must index verify {self.uri}` for details")
        require_size(path, self.uri, shard)
        return keep_from_children(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _close(self, keep: int) -> None:
        """Closes all shards except the `keep` most recently used ones."""
        while len(self._open) > max(keep, 0):
            _, (file, _) = self._open.popitem(last=False)
            if file is not None:
                close(file)

    def _after_fork(self) -> None:
        """Forgets the parent's open files, which were closed in this process at its start."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open.clear()

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_process") and not is_ending():  # at the interpreter's end modules lose their names
            self._after_fork()
            self._close(0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


class ShardCache:
    """At most `limit` bytes of shards below `folder`; evicts the least recently opened one not in use (LRU)."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder).expanduser(), limit
        with self.exclusive():  # fails if the folder cannot be written
            storage.remove_leftovers(self.folder)

    def check(self, shards: Sequence[Shard], window: int) -> None:
        """Raises ValueError unless the `window` largest of the shards fit, into the limit and onto the disk."""
        need = sum(sorted((shard.bytes for shard in shards), reverse=True)[:window])
        with self.exclusive():
            room = self.allowed(self.files())
        if need > room:
            raise UserError(
                f"{self.folder}: the {min(window, len(shards))} shards that are shuffled together take up to "
                f"{need / GB:.3g} GB, and there is room for {max(room, 0) / GB:.3g} GB ({CACHE_GB} "
                f"{self.limit / GB:.3g}, and what is free on the disk); allow more, or lower --shuffle-window"
            )

    def open(self, uri: str, shard: Shard, wait: bool = True) -> int | None:
        """A file descriptor of the shard, downloaded if necessary. The shard stays in the cache until its `close`.
        None if there is no room for it; without `wait`, also if another process is downloading it.
        Raises ValueError: the object is missing, or its bytes are not those of the index; TransientError: the folder
        was deleted meanwhile."""
        path = self.folder / f"{shard.sha256}.tar"
        try:
            while True:
                descriptor = self.pin(path, shard.bytes)
                if descriptor is not None or not self.download(uri, shard, path, wait):
                    return descriptor
        except FileNotFoundError as error:
            raise storage.TransientError(
                f"{self.folder}: was deleted while it was in use; run the same command again to go on"
            ) from error

    def pin(self, path: Path, size: int) -> int | None:
        """The file, open and locked against eviction; None if there is no file of that size."""
        try:
            descriptor = keep_from_children(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size == size:
            os.utime(descriptor)  # the time by which the least recently used file is found
            return descriptor
        close(descriptor)
        if status.st_nlink:  # it was truncated
            self.evict(path)
        return None

    def download(self, uri: str, shard: Shard, path: Path, wait: bool) -> bool:
        """Whether to look for the shard again: it was downloaded, by this or another process."""
        part = path.with_suffix(".part")
        with storage.disk_errors(part):
            descriptor = keep_from_children(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait:  # until the download is done; the other process may then have a shared lock, too
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                return wait
            try:
                if os.fstat(descriptor).st_nlink == 0 or path.exists():  # another process has done it
                    return True
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    complete = self.fill(uri, shard, file)
                if complete:
                    with self.exclusive():  # a file renamed while `files` lists the folder could be missed
                        part.replace(path)
                return complete
            finally:
                with suppress(FileNotFoundError):
                    if part.stat().st_ino == os.fstat(descriptor).st_ino:  # it is still the one that is locked
                        part.unlink()
        finally:
            close(descriptor)

    def fill(self, uri: str, shard: Shard, file: BinaryIO) -> bool:
        """Downloads into the file, which is locked exclusively. Returns False if there is no room."""
        source = storage.join(uri, shard.name)
        for _ in range(DOWNLOAD_TRIES):
            if not self.make_room(shard.bytes, file):
                return False
            target = storage.HashingFile(file, limit=shard.bytes)
            try:
                with storage.disk_errors(self.folder):
                    storage.copy(source, target)
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError:
                raise UserError(f"{source}: is missing; run `must index verify {uri}` for details") from None
            if (target.size, target.sha256) == (shard.bytes, shard.sha256):
                return True
            file.seek(0)
        raise UserError(f"{source}: has changed (sha256); run `must index verify {uri}` for details")

    def make_room(self, size: int, reserve: BinaryIO | None = None) -> bool:
        """Evicts until `size` more bytes fit; gives the file `reserve` that size, so that other processes count it."""
        with self.exclusive():
            if reserve:
                reserve.truncate(0)
            files = sorted(self.files(), key=lambda file: file.used)
            held = sum(file.size for file in files)
            allowed = self.allowed(files)
            for file in files:
                if held + size <= allowed:
                    break
                if self.evict(file.path):
                    held -= file.size
            if held + size > allowed:
                return False
            if reserve:
                reserve.truncate(size)
            return True

    def allowed(self, files: Iterable[Cached]) -> int:
        """Bytes that these files may have: what the disk has for them, up to the limit."""
        on_disk = sum(file.on_disk for file in files)
        return min(self.limit, on_disk + shutil.disk_usage(self.folder).free - SPARE)

    def evict(self, path: Path) -> bool:
        """Deletes a file unless a process has locked it. The unfinished download of a killed process has no lock."""
        try:  # opened for writing, which an exclusive lock on NFS requires
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it was deleted, or is another user's
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return True
        except OSError:  # locked, or in a folder of another user
            return False
        finally:
            os.close(descriptor)

    def files(self) -> Iterator[Cached]:
        """Of one moment only within `exclusive`."""
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    yield Cached(path, status.st_size, status.st_blocks * 512, status.st_mtime_ns)

    def exclusive(self) -> AbstractContextManager[None]:
        """For one process at a time: counting and evicting."""
        return in_turn(self.folder / "lock")


class Cached(NamedTuple):
    path: Path
    size: int
    on_disk: int  # bytes; less than `size` while it is downloaded
    used: int  # ns


def prefetch(
    items: Iterable[Value],
    reader: ShardReader,
    shard_at: Callable[[int], Shard | None],
    ahead: int,
    shard_range: Callable[[int], tuple[int, int]],
    in_flight: int,
) -> Iterator[Value]:
    """`shard_range`: the positions [first, stop) of the shards of the n-th item; for the others see ShardPrefetcher."""
    if reader.cache is None:
        yield from items
        return
    with closing(ShardPrefetcher(reader.cache, reader.uri, shard_at, ahead)) as prefetcher:
        for number, item in enumerate(items):
            prefetcher.use(shard_range(max(number - in_flight, 0))[0], shard_range(number)[1])
            yield item


class ShardPrefetcher:
    """Downloads of one process. The processes of a node share the cache, so no shard is downloaded twice.
    `shard_at`: the shard at a position of the sequence in which shards are used, None past its end; `ahead`: number of
    shards to prefetch, besides those in use."""

    def __init__(self, cache: ShardCache, uri: str, shard_at: Callable[[int], Shard | None], ahead: int) -> None:
        self.cache, self.uri, self.shard_at, self.ahead = cache, uri, shard_at, ahead
        self.first = 0
        self.files: dict[int, Future[int | None]] = {}  # position -> open file, which keeps the shard in the cache
        self.slots = threading.Semaphore(DOWNLOADS)

    def use(self, first: int, stop: int) -> None:
        """Announces that the shards at positions [first, stop) are read from now on."""
        self.release(first)
        for position in range(first, stop + self.ahead):
            if position not in self.files and (shard := self.shard_at(position)):
                self.files[position] = DaemonThreads().submit(self.fetch, position, shard)

    def close(self) -> None:
        """Releases everything. A running download ends by itself or with the process."""
        self.release(sys.maxsize)

    def release(self, first: int) -> None:
        """Releases the shards before this position, those that are being downloaded as soon as they are there."""
        self.first = first
        for position in [position for position in self.files if position < first]:
            self.files.pop(position).add_done_callback(self.let_go)

    def let_go(self, file: Future[int | None]) -> None:
        if (descriptor := file.result()) is not None:
            close(descriptor)

    def fetch(self, position: int, shard: Shard) -> int | None:
        with suppress(ValueError, OSError):  # the reader of the shard gets the same error and reports it
            while position >= self.first:
                with self.slots:
                    descriptor = self.cache.open(self.uri, shard, wait=False)
                if descriptor is not None:
                    return descriptor
                time.sleep(DOWNLOAD_PAUSE)  # there is no room, or another process is downloading it
        return None
