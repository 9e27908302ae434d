"""The folder `.shard` in the output, where a run keeps what it has done until the index is written.

Below it is a folder a run, named by what the run is: parts of one run meet there, those of another cannot. `run.json`
says whose turn it is. Of several programs that share the work none schedules: what is done is known from the records,
and a lock a part keeps two programs from doing the same part at once.
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
from must.base.text import brief
from must.data.format import index
from must.data.shards.chunk import record_name

WORK_FOLDER = ".shard"
RUN_FILE, ID = "run.json", "run_id"  # the file, and the name in it that a run was given
SHARDS_LOCK = Kind("must shard", "--output", ".shard.lock")  # of the output
LOCKS = ".shard-parts"  # the parts' locks are in a folder of their own, for `.shard` may hold a million names
READERS = 16  # records that are fetched from a bucket at the same time
SHARD_FILE = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.(tar|npy)")  # as must.base.names has it, and its table
OF_INDEX = re.compile(rf"{SHARD_FILE.pattern}|{TABLE.pattern}")  # what only an index that names it gives a meaning
WRITTEN_NAME = re.compile(rf"{OF_INDEX.pattern}|rejected\.jsonl")


@dataclass(frozen=True)
class Run:
    """All that decides the bytes of the shards: programs for which it is the same may share the work."""

    source: str
    test_source: str
    files: int
    listing: str  # sha256 of the files' names and sizes, and of what could not be listed
    settings: dict[str, Any]
    revision: int  # of the index that it will write

    @property
    def name(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def to_json(self, run_id: str = "") -> bytes:
        return json.dumps(asdict(self) | ({ID: run_id} if run_id else {}), indent=1).encode() + b"\n"

    def is_of(self, found: Any) -> bool:
        """Whether `found`, what run.json says, is of this run, by whatever name."""
        mine = json.loads(self.to_json())
        return isinstance(found, dict) and {name: found.get(name) for name in mine} == mine

    def require_same(self, found: Any, where: str) -> None:
        """Raises ValueError: `found`, a Run's fields, are another's; says which and what to do."""
        for name, mine in json.loads(self.to_json()).items():
            theirs = found.get(name) if isinstance(found, dict) else None
            if theirs != mine:
                raise UserError(
                    f"{where} is of another run: its {difference(name, theirs, mine)}; all parts need the same files "
                    "and parameters; choose another --output, or delete that folder once no part is at work"
                )


def difference(name: str, theirs: Any, mine: Any) -> str:
    if name == "listing":
        return "list of files is another one of the same length: names or sizes have changed"
    if name == "settings" and isinstance(theirs, dict):
        name = next(key for key in {**mine, **theirs} if (key, theirs.get(key)) not in mine.items())
        theirs, mine = theirs.get(name), mine.get(name)
    spoken = "number of files" if name == "files" else name.replace("_", " ")
    return f"{spoken} is {value_shown(theirs)}, here it is {value_shown(mine)}"


def value_shown(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else brief(value)


class DamagedError(UserError):
    """run.json is no JSON object."""


class Workdir:
    """Where one program of a run works.

    `chunks` (known once the run is) holds pieces and records, for all parts. `local` is a folder on this host for this
    program's own lists; `records` one where the records can be read. For a bucket both are temporary.
    """

    def __init__(self, output: str, number: int = 1, parts: int = 1) -> None:
        self.output, self.alone = output, parts == 1
        self.uri = storage.join(output, WORK_FOLDER)
        self.remote = storage.is_remote(output)
        own = storage.join(self.uri, f"part-{number}-of-{parts}")
        self.local = Path(tempfile.mkdtemp(prefix="must-shard-")) if self.remote else storage.local(own)
        self.chunks, self.records = "", Path()

    def __enter__(self) -> Self:
        if not self.remote:  # what a killed run was writing; the caller holds the lock
            shutil.rmtree(self.local, ignore_errors=True)
            if self.alone:
                self.tidy()
        with storage.disk_errors(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.local, ignore_errors=True)  # each run makes the lists again
        if not self.remote:
            if self.alone and not storage.exists(storage.join(self.uri, RUN_FILE)):
                shutil.rmtree(storage.local(self.uri), ignore_errors=True)  # there is nothing to go on with
            with suppress(OSError):  # it is empty where a part failed before there was
                storage.local(self.uri).rmdir()

    def tidy(self) -> None:
        """Deletes what killed programs were writing to a local output. The caller holds the lock."""
        if not self.remote:
            folder = storage.local(self.output)
            # Other parts may be deleting their own folders: os.walk passes over what is gone, Path.glob raises.
            below = [Path(place) / name for place, _, names in os.walk(folder / WORK_FOLDER) for name in names]
            inside = (path for path in below if path.name.startswith(storage.TEMPORARY))
            for path in [*folder.glob(f"{storage.TEMPORARY}*"), *inside]:
                path.unlink(missing_ok=True)

    def start(self, run: Run) -> None:
        """Goes on with the work of an equal run; throws the work of another one away. The caller holds the lock."""
        found = self.run()
        if not run.is_of(found):
            if found is not None:
                self.discard()
            storage.write_bytes(storage.join(self.uri, RUN_FILE), run.to_json())
        self.enter(run)

    def claim(self, run: Run, run_id: str) -> None:
        """Joins the parts of an equal run, or begins it.
        Raises ValueError: parts of another run are at work here, or were, and theirs is not known to be another run's.
        """
        path = storage.join(self.uri, RUN_FILE)
        seen = storage.generation(path) or 0
        found = self.run() if seen else None
        if found is None or finished(found, run) or (not run.is_of(found) and run_id != found.get(ID, run_id)):
            with suppress(storage.ConflictError):  # another part was faster
                storage.write_bytes(path, run.to_json(run_id), if_generation_match=seen)
        run.require_same(self.run(), self.uri)
        self.enter(run)

    def run(self) -> dict[str, Any] | None:
        """What run.json says; None: there is none. One that cannot be read is of no run."""
        try:
            return storage.read_object(storage.join(self.uri, RUN_FILE), dict, DamagedError())
        except FileNotFoundError:
            return None
        except DamagedError:
            return {}

    def is_of(self, run: Run) -> bool:
        return run.is_of(self.run())

    def enter(self, run: Run) -> None:
        self.chunks = storage.join(self.uri, run.name)
        self.records = self.local if self.remote else storage.local(self.chunks)
        if not self.remote:
            with storage.disk_errors(self.records):
                self.records.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Deletes records, pieces, and the shards that the other run has finished without an index."""
        if self.remote:
            storage.delete_folder(self.uri)
        else:
            for path in storage.local(self.uri).iterdir():
                if path != self.local:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        there = storage.exists(storage.join(self.output, INDEX_FILE))
        self.remove_strays(index.load_index(self.output).files if there else set())

    def remove_strays(self, known: set[str]) -> None:
        """Deletes the shards and tables in the output that are not `known`: a run that was given up has left them."""
        for entry in list(storage.list_files(self.output)):
            if OF_INDEX.fullmatch(entry.name) and entry.name not in known:
                storage.delete(storage.join(self.output, entry.name))

    def done(self, numbers: list[int]) -> set[int]:
        """Those of the chunks that have a record."""
        wanted = {record_name(number): number for number in numbers}
        try:
            return {wanted[entry.name] for entry in storage.list_files(self.chunks) if entry.name in wanted}
        except FileNotFoundError:  # another part has come to the run's end
            return set()

    def fetch(self, numbers: list[int]) -> None:
        """Copies the records of these chunks that are in a bucket to this host."""
        if self.remote:
            names = [name for name in map(record_name, numbers) if not (self.records / name).exists()]
            with ThreadPoolExecutor(READERS) as pool:
                list(
                    pool.map(lambda name: storage.download(storage.join(self.chunks, name), self.records / name), names)
                )

    def leave(self) -> None:
        """Deletes what was written for a run that another part had finished already."""
        storage.delete_folder(self.chunks)

    def clear_but_later(self, previous: index.Index) -> None:
        """Deletes what runs have left that `previous` has overtaken. One that would follow it may still go on."""
        found = self.run()
        if found is not None:
            revision = found.get("revision")
            if isinstance(revision, int) and revision > previous.revision:
                return
            self.remove_strays(previous.files)
        self.clear()

    def clear(self) -> None:
        """Deletes everything: the run has come to its end. What says whose work it is goes first.

        So do the locks of parts that were killed. One that still lives finds nothing to do any more.
        """
        storage.delete(storage.join(self.uri, RUN_FILE))
        storage.delete_folder(self.uri)
        storage.delete_folder(storage.join(self.output, LOCKS))
        shutil.rmtree(self.local, ignore_errors=True)


def finished(found: dict[str, Any], run: Run) -> bool:
    """Whether the run that `found` tells of has written its index: it was killed before it could tidy up."""
    revision = found.get("revision")
    return isinstance(revision, int) and revision < run.revision


LOCK = re.compile(r"([1-9]\d{0,8}-of-[1-9]\d{0,8})\.lock")
WATCHED = 16  # locks of parts whose owners' life is waited for at the same time


def part_lock(name: str) -> Kind:
    """The lock of the part `name`, I-of-N."""
    return Kind(f"must shard --part {name.replace('-of-', '/')}", "--output", f"{LOCKS}/{name}.lock")


@contextmanager
def locked_part(output: str, number: int, parts: int) -> Iterator[Callable[[], None]]:
    """Holds the lock of a part; as must.base.lock.locked."""
    try:
        with locked(output, part_lock(f"{number}-of-{parts}")) as still_ours:
            yield still_ours
    finally:
        remove_lock_folder(output)


def refuse_living_parts(output: str) -> None:
    """Raises HeldError: a part is at work there. The locks of dead ones are removed."""
    try:
        found = [LOCK.fullmatch(entry.name) for entry in storage.list_files(storage.join(output, LOCKS))]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(WATCHED) as pool:
        list(pool.map(lambda match: take_and_release(output, match[1]), filter(None, found)))
    remove_lock_folder(output)


def take_and_release(output: str, name: str) -> None:
    with locked(output, part_lock(name)):
        pass


def remove_lock_folder(output: str) -> None:
    if not storage.is_remote(output):
        with suppress(OSError):  # other parts are at work
            storage.local(storage.join(output, LOCKS)).rmdir()
