"""The folder `.shard` in the output, where a run keeps its finished chunks until the index is written.

`run.json` describes the run. Several programs may share it: part I of N packs the files whose names' hash modulo N is
I - 1, as a run in a folder of its own, `.shard-parts/I-of-N`, and needs no other part. `must shard` without `--part`
then makes the shards of the chunks of all parts, as if they were its own."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Self

from must.base import storage
from must.base.errors import UserError
from must.base.lock import Kind, identify_machine
from must.base.parameters import make_record, require
from must.base.processes import is_running
from must.config import ShardConfig
from must.config.defaults import parse_part
from must.config.work import INDEX_FILE
from must.data import format as index
from must.data.format import OFFSETS_NAME, SHARD_NAME, TABLE
from must.data.shards.listing import Listing, encode_settings, identify_source

logger = logging.getLogger(__name__)

WORK_FOLDER, RUN_FILE, DONE_FILE = ".shard", "run.json", "done.json"
PARTS_FOLDER = ".shard-parts"
PART_FILE = re.compile(rf"(?P<number>\d+)-of-(?P<parts>\d+)/{re.escape(WORK_FOLDER)}/(?P<file>.+)", re.DOTALL)
SHARDS_LOCK = Kind("must shard", "--output", ".shard.lock")  # of the output, or of a part's folder
READERS = 16  # records that are fetched from a bucket at the same time
# of no use without an index that names them
OF_INDEX = re.compile("|".join(name.pattern for name in (SHARD_NAME, OFFSETS_NAME, TABLE)))
WRITTEN_NAME = re.compile(rf"{OF_INDEX.pattern}|rejected\.jsonl")

Run = dict[str, Any]
"""run.json: everything that determines the bytes of a run's chunks. The work of an equal run is resumed."""


def make_run(config: ShardConfig, previous: str, listing: str) -> Run:
    """`previous`: sha256 of the index to which the run adds, "" if there is none; `listing`: Listing.key."""
    return {
        "source": identify_source(config.source),
        "test_source": identify_source(config.test_source) if config.test_source else "",
        "settings": encode_settings(config),
        "previous": previous,
        "listing": listing,
    }


class Workdir:
    """The folders of one program of a run.

    `uri` has the chunks' tars and records. `local` is a folder on this host for this program's lists; if the output is
    a bucket, it is temporary and has copies of the records. `folders`: where chunks are, that of part I at I - 1."""

    def __init__(self, output: str, root: str = "") -> None:
        self.output, self.root = output, root or output
        self.uri = storage.join(self.root, WORK_FOLDER)
        self.remote = storage.is_remote(output)
        self.local = make_temporary_folder() if self.remote else storage.local(self.uri) / "lists"
        self.folders, self.first = [self.uri], 0

    def __enter__(self) -> Self:
        if not self.remote:  # unfinished files of a killed run; the caller holds the lock
            shutil.rmtree(self.local, ignore_errors=True)
            folder, temporary = storage.local(self.root), f"{storage.TEMPORARY}*"
            for path in [*folder.glob(temporary), *storage.local(self.uri).rglob(temporary)]:
                path.unlink(missing_ok=True)
        with storage.disk_errors(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.local, ignore_errors=True)  # each run writes new lists
        if not self.remote and not storage.exists(storage.join(self.uri, RUN_FILE)):
            shutil.rmtree(storage.local(self.uri), ignore_errors=True)  # there is nothing to resume

    def tar(self, number: int, split: str) -> str:
        return storage.join(self.folder(number), f"chunk-{number:06d}.{split}.tar")

    def record(self, number: int) -> str:
        return storage.join(self.folder(number), record_name(number))

    def local_record(self, number: int) -> Path:
        """The record or, if it is in a bucket, its copy by `fetch`."""
        return self.local / record_name(number) if self.remote else storage.local(self.record(number))

    def use_parts(self, parts: int) -> None:
        """From now on the chunks are those of so many parts."""
        folders = [find_part_folder(self.output, number, parts) for number in range(1, parts + 1)]
        self.folders = [storage.join(folder, WORK_FOLDER) for folder in folders]

    def folder(self, number: int) -> str:
        return self.folders[(number - self.first) % len(self.folders)]

    def start(self, run: Run) -> None:
        """Resumes the work of an equal run; deletes the work of another one. The caller holds the lock."""
        content = self.run()
        if content != run:
            if content is not None:
                self.discard()
            storage.write_bytes(storage.join(self.uri, RUN_FILE), json.dumps(run, indent=1).encode() + b"\n")

    def run(self) -> Run | None:
        """The content of run.json; None if there is none, {} if it is damaged."""
        try:
            data = storage.read_bytes(storage.join(self.uri, RUN_FILE))
        except FileNotFoundError:
            return None
        return storage.parse_object_or_none(data, dict) or {}

    def discard(self) -> None:
        """Deletes the chunks, and the shards of a run that has written no index."""
        if self.remote:
            storage.delete_folder(self.uri)
        else:
            for path in storage.local(self.uri).iterdir():
                if path != self.local:
                    path.unlink(missing_ok=True)
        if self.root == self.output:
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
        entries = storage.list_existing(self.uri)
        return {chunks[entry.name] for entry in entries if entry.name in chunks}

    def finish_part(self, run: Run, numbers: list[int], listing: Listing) -> None:
        """Notes that all chunks of this part are done."""
        content = asdict(Part(run, numbers, replace(listing, plans=())))
        storage.write_bytes(storage.join(self.uri, DONE_FILE), json.dumps(content).encode())

    def fetch(self, numbers: list[int]) -> None:
        """Copies the records of these chunks from a bucket to this host."""
        if self.remote:
            with ThreadPool(READERS) as pool:  # after an error nobody waits for its threads
                pool.starmap(storage.download, [(self.record(number), self.local_record(number)) for number in numbers])

    def clear_up_to(self, previous: index.Index) -> None:
        """Deletes finished work. The work of an interrupted run that adds to the index `previous` is kept."""
        content = self.run()
        if content is not None:
            if content.get("previous") == previous.sha256:
                return
            if self.root == self.output:
                self.remove_strays(previous.files)
        self.clear()

    def clear(self) -> None:
        """Deletes everything after the run has finished, run.json first."""
        storage.delete(storage.join(self.uri, RUN_FILE))
        storage.delete_folder(self.uri)
        if len(self.folders) > 1:  # the parts are joined
            storage.delete_folder(storage.join(self.output, PARTS_FOLDER))
        shutil.rmtree(self.local, ignore_errors=True)


def refuse_strays(output: str, previous: index.Index) -> None:
    """Raises ValueError for files with names of shards or tables that are not of the index there."""
    if storage.exists(storage.join(output, WORK_FOLDER, RUN_FILE)):
        return
    known = previous.files if previous.sha256 else set()
    for entry in storage.list_files(output):
        require(
            entry.name in known or not WRITTEN_NAME.fullmatch(entry.name),
            f"{output} holds {entry.name}, which is not of an index of `must shard` there; choose another --output, or "
            "move the file away",
        )


def record_name(number: int) -> str:
    return f"chunk-{number:06d}.npz"


def make_temporary_folder() -> Path:
    """A folder for the time of this process. Removes those that killed processes of this container have left."""
    prefix = f"must-shard-{hashlib.sha256(str(identify_machine()).encode()).hexdigest()[:12]}-"
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        process = path.name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))


def work_root(config: ShardConfig) -> str:
    """The folder with the lock and the work of this program: the output, or that of a part."""
    number, parts = parse_part(config.part)
    return config.output if parts == 1 else find_part_folder(config.output, number, parts)


def find_part_folder(output: str, number: int, parts: int) -> str:
    return storage.join(output, PARTS_FOLDER, f"{number}-of-{parts}")


@dataclass(frozen=True)
class Part:
    """A finished part: its run, the numbers of its chunks, and what it has listed."""

    run: Run
    numbers: list[int]
    listing: Listing


def read_parts(config: ShardConfig, previous: str) -> list[Part]:
    """The parts of a run that adds to the index with the sha256 `previous`; [] if there was no such run."""
    folder = storage.join(config.output, PARTS_FOLDER)
    parts: dict[int, dict[int, Part]] = {}
    for entry in list(storage.list_existing(folder)):
        if (match := PART_FILE.fullmatch(entry.name)) is None:  # such as a free lock
            continue
        of_count = parts.setdefault(int(match["parts"]), {})
        if match["file"] == DONE_FILE:
            path = storage.join(folder, entry.name)
            damage = UserError(f"{path} is damaged; delete its folder and run that part again")
            of_count[int(match["number"])] = storage.read_object(path, partial(make_record, Part), damage)
    if any(part.run["previous"] != previous for of_count in parts.values() for part in of_count.values()):
        logger.info(f"{folder}: deleted, it is the work of an earlier run")
        storage.delete_folder(folder)
        return []
    if not parts:
        return []
    count = min(parts, key=lambda count: count - len(parts[count]))
    numbers, run = range(1, count + 1), make_run(config, previous, "")
    missing = [f"{number}/{count}" for number in numbers if number not in parts[count]]
    require(
        not missing,
        f"{folder} has parts of this work, and these are not done: --part {', '.join(missing)}; run them, or delete "
        "that folder to do all without parts",
    )
    for number, part in parts[count].items():
        differences = [name for name in run if name != "listing" and part.run.get(name) != run[name]]
        require(
            not differences,
            f"part {number}/{count} in {folder} differs in: {', '.join(differences)}; run it again with the parameters "
            "of this command, or delete that folder",
        )
    return [parts[count][number] for number in numbers]


def join_listings(parts: Iterable[Part]) -> Listing:
    """The listing of all files of the parts."""
    first, *others = [part.listing for part in parts]
    return replace(
        first,
        items=first.items + sum(listing.items for listing in others),
        shares=tuple(map(sum, zip(first.shares, *(listing.shares for listing in others), strict=True))),
        rejected=tuple(chain(first.rejected, *(listing.rejected for listing in others))),
    )
