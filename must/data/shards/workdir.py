"""The folder `.shard` in the output, where a run keeps its finished chunks until the index is written.

It has a folder per run, named by a hash of the run: only parts of the same run share one. `run.json` describes the
current run. Programs that share the work have no scheduler: the records show which chunks are done, and one lock per
part prevents two programs from processing the same part at the same time.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from must.base import storage
from must.base.errors import UserError
from must.base.files import INDEX_FILE
from must.base.lock import Kind, locked
from must.base.names import TABLE
from must.data.format import index
from must.data.shards.chunk import record_name

WORK_FOLDER = ".shard"
RUN_FILE, ID = "run.json", "run_id"  # the file, and the key in it for --run-id
SHARDS_LOCK = Kind("must shard", "--output", ".shard.lock")  # of the output
LOCKS = ".shard-parts"  # the parts' locks are in a separate folder, as `.shard` may have a million files
READERS = 16  # records that are fetched from a bucket at the same time
SHARD_FILE = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.(tar|npy)")  # as in must.base.names, and its table
OF_INDEX = re.compile(rf"{SHARD_FILE.pattern}|{TABLE.pattern}")  # of no use without an index that names them
WRITTEN_NAME = re.compile(rf"{OF_INDEX.pattern}|rejected\.jsonl")


@dataclass(frozen=True)
class Run:
    """Everything that determines the bytes of the shards: programs with equal runs may share the work."""

    source: str
    test_source: str
    files: int
    listing: str  # sha256 of the files' names and sizes, and of the files that could not be listed
    settings: dict[str, Any]
    revision: int  # of the index that the run will write

    @property
    def name(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def to_json(self, run_id: str = "") -> bytes:
        return json.dumps(asdict(self) | ({ID: run_id} if run_id else {}), indent=1).encode() + b"\n"

    def differences(self, content: dict[str, Any] | None) -> list[str]:
        """The names of the fields in which `content`, that of run.json, is of another run; its run_id may be any."""
        return [name for name, value in json.loads(self.to_json()).items() if (content or {}).get(name) != value]


class Workdir:
    """The folders of one program of a run.

    `chunks` has the pieces and records of all parts; it is set once the run is known. `local` is a folder on this host
    for this program's lists; `records` is one where the records can be read. If the output is a bucket, both are
    temporary.
    """

    def __init__(self, output: str, number: int = 1, parts: int = 1) -> None:
        self.output, self.alone = output, parts == 1
        self.uri = storage.join(output, WORK_FOLDER)
        self.remote = storage.is_remote(output)
        part = storage.join(self.uri, f"part-{number}-of-{parts}")
        self.local = Path(tempfile.mkdtemp(prefix="must-shard-")) if self.remote else storage.local(part)
        self.chunks, self.records = "", Path()

    def __enter__(self) -> Self:
        if not self.remote:  # unfinished files of a killed run; the caller holds the lock
            shutil.rmtree(self.local, ignore_errors=True)
            if self.alone:
                self.tidy()
        with storage.disk_errors(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.local, ignore_errors=True)  # each run writes new lists
        if not self.remote:
            if self.alone and not storage.exists(storage.join(self.uri, RUN_FILE)):
                shutil.rmtree(storage.local(self.uri), ignore_errors=True)  # there is nothing to resume
            with suppress(OSError):  # it is empty if a part failed before it was used
                storage.local(self.uri).rmdir()

    def tidy(self) -> None:
        """Deletes unfinished files of killed programs in a local output. The caller holds the lock."""
        if not self.remote:
            folder = storage.local(self.output)
            # Other parts may be deleting their folders: os.walk skips missing ones, Path.glob raises.
            below = [Path(parent) / name for parent, _, names in os.walk(folder / WORK_FOLDER) for name in names]
            inside = (path for path in below if path.name.startswith(storage.TEMPORARY))
            for path in [*folder.glob(f"{storage.TEMPORARY}*"), *inside]:
                path.unlink(missing_ok=True)

    def start(self, run: Run) -> None:
        """Resumes the work of an equal run; deletes the work of another one. The caller holds the lock."""
        content = self.run()
        if run.differences(content):
            if content is not None:
                self.discard()
            storage.write_bytes(storage.join(self.uri, RUN_FILE), run.to_json())
        self.enter(run)

    def claim(self, run: Run, run_id: str) -> None:
        """Joins the parts of an equal run, or begins it.
        Raises ValueError: there is work of another run, which is neither finished nor known by another run_id."""
        path = storage.join(self.uri, RUN_FILE)
        generation = storage.generation(path) or 0
        content = self.run() if generation else None
        other = content is not None and run.differences(content) and run_id != content.get(ID, run_id)
        if other or content is None or finished(content, run):
            with suppress(storage.ConflictError):  # another part has written it first
                storage.write_bytes(path, run.to_json(run_id), if_generation_match=generation)
        if others := run.differences(self.run()):
            raise UserError(
                f"{self.uri} is of another run (it differs in: {', '.join(others)}); all parts need the same files and "
                "parameters; choose another --output, or delete that folder once no part is at work"
            )
        self.enter(run)

    def run(self) -> dict[str, Any] | None:
        """The content of run.json; None if there is none, {} if it is damaged."""
        try:
            data = storage.read_bytes(storage.join(self.uri, RUN_FILE))
        except FileNotFoundError:
            return None
        return storage.object_or_none(data, dict) or {}

    def is_of(self, run: Run) -> bool:
        return not run.differences(self.run())

    def enter(self, run: Run) -> None:
        self.chunks = storage.join(self.uri, run.name)
        self.records = self.local if self.remote else storage.local(self.chunks)
        if not self.remote:
            with storage.disk_errors(self.records):
                self.records.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Deletes records, pieces, and shards of a run that has written no index."""
        if self.remote:
            storage.delete_folder(self.uri)
        else:
            for path in storage.local(self.uri).iterdir():
                if path != self.local:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        indexed = storage.exists(storage.join(self.output, INDEX_FILE))
        self.remove_strays(index.load_index(self.output).files if indexed else set())

    def remove_strays(self, known: set[str]) -> None:
        """Deletes the shards and tables in the output that are not `known`: they are of an abandoned run."""
        for entry in list(storage.list_files(self.output)):
            if OF_INDEX.fullmatch(entry.name) and entry.name not in known:
                storage.delete(storage.join(self.output, entry.name))

    def done(self, numbers: list[int]) -> set[int]:
        """The chunks among `numbers` that have a record."""
        chunks = {record_name(number): number for number in numbers}
        entries = storage.list_existing(self.chunks)  # nothing if another part has finished the run
        return {chunks[entry.name] for entry in entries if entry.name in chunks}

    def fetch(self, numbers: list[int]) -> None:
        """Copies the records of these chunks from a bucket to this host."""
        if self.remote:
            names = [name for name in map(record_name, numbers) if not (self.records / name).exists()]
            with ThreadPoolExecutor(READERS) as pool:
                list(
                    pool.map(lambda name: storage.download(storage.join(self.chunks, name), self.records / name), names)
                )

    def clear_up_to(self, previous: index.Index) -> None:
        """Deletes the work of runs up to the revision `previous`. The work for a later revision is kept."""
        content = self.run()
        if content is not None:
            revision = content.get("revision")
            if isinstance(revision, int) and revision > previous.revision:
                return
            self.remove_strays(previous.files)
        self.clear()

    def clear(self) -> None:
        """Deletes everything after the run has finished, run.json first.

        This includes the locks of killed parts. A part that is still running finds no more work.
        """
        storage.delete(storage.join(self.uri, RUN_FILE))
        storage.delete_folder(self.uri)
        storage.delete_folder(storage.join(self.output, LOCKS))
        shutil.rmtree(self.local, ignore_errors=True)


def finished(content: dict[str, Any], run: Run) -> bool:
    """Whether the run of this run.json has written its index, and was killed before it deleted its work."""
    revision = content.get("revision")
    return isinstance(revision, int) and revision < run.revision


LOCK = re.compile(r"([1-9]\d{0,8}-of-[1-9]\d{0,8})\.lock")
WATCHED = 16  # locks of parts that are checked at the same time; a check waits for a sign of the owner


def part_lock(name: str) -> Kind:
    """The lock of the part `name`, I-of-N."""
    return Kind(f"must shard --part {name.replace('-of-', '/')}", "--output", f"{LOCKS}/{name}.lock")


@contextmanager
def locked_part(output: str, number: int, parts: int) -> Iterator[Callable[[], None]]:
    """Holds the lock of a part; as must.base.lock.locked."""
    try:
        with locked(output, part_lock(f"{number}-of-{parts}")) as check_lock:
            yield check_lock
    finally:
        remove_lock_folder(output)


def refuse_living_parts(output: str) -> None:
    """Raises HeldError: a part is running. The locks of killed parts are removed."""
    matches = [LOCK.fullmatch(entry.name) for entry in storage.list_existing(storage.join(output, LOCKS))]
    with ThreadPoolExecutor(WATCHED) as pool:
        list(pool.map(lambda match: take_and_release(output, match[1]), filter(None, matches)))
    remove_lock_folder(output)


def take_and_release(output: str, name: str) -> None:
    with locked(output, part_lock(name)):
        pass


def remove_lock_folder(output: str) -> None:
    if not storage.is_remote(output):
        with suppress(OSError):  # other parts are running
            storage.local(storage.join(output, LOCKS)).rmdir()
