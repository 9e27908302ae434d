"""The folder `.shard` in the output, where a run keeps its finished chunks until the index is written.

`run.json` describes the run. A part of a run has such a folder of its own, in `.shard-parts/I-of-N`.
"""

import json
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from must.base import storage
from must.base.files import INDEX_FILE
from must.base.lock import Kind
from must.base.names import TABLE
from must.data.format import index
from must.data.shards.chunk import record_name, tar_name

WORK_FOLDER, RUN_FILE = ".shard", "run.json"
PARTS_FOLDER = ".shard-parts"
SHARDS_LOCK = Kind("must shard", "--output", ".shard.lock")  # of the output, or of a part's folder
READERS = 16  # records that are fetched from a bucket at the same time
SHARD_FILE = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.(tar|npy)")  # as in must.base.names, and its table
OF_INDEX = re.compile(rf"{SHARD_FILE.pattern}|{TABLE.pattern}")  # of no use without an index that names them
WRITTEN_NAME = re.compile(rf"{OF_INDEX.pattern}|rejected\.jsonl")


@dataclass(frozen=True)
class Run:
    """Everything that determines the bytes of a run's chunks: the work of an equal run is resumed."""

    source: str  # as history.source_place gives it
    test_source: str
    settings: dict[str, Any]
    previous: str  # sha256 of the index to which the run adds; "" if there is none
    listing: str  # Listing.key

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def differences(self, content: dict[str, Any] | None) -> list[str]:
        """The names of the fields in which `content`, that of run.json, is of another run."""
        return [name for name, value in json.loads(self.to_json()).items() if (content or {}).get(name) != value]


class Workdir:
    """The folders of one program of a run.

    `uri` has the chunks' tars and records. `local` is a folder on this host for this program's lists, `records` one for
    its records; if the output is a bucket, both are temporary. `folders`: where chunks are, that of part I at I - 1.
    """

    def __init__(self, output: str, root: str = "") -> None:
        self.output, self.root = output, root or output
        self.uri = storage.join(self.root, WORK_FOLDER)
        self.remote = storage.is_remote(output)
        lists = storage.join(self.uri, "lists")
        self.local = Path(tempfile.mkdtemp(prefix="must-shard-")) if self.remote else storage.local(lists)
        self.records = self.local if self.remote else storage.local(self.uri)
        self.folders, self.first = [self.uri], 0

    def __enter__(self) -> Self:
        if not self.remote:  # unfinished files of a killed run; the caller holds the lock
            shutil.rmtree(self.local, ignore_errors=True)
            self.tidy()
        with storage.disk_errors(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.local, ignore_errors=True)  # each run writes new lists
        if not self.remote and not storage.exists(storage.join(self.uri, RUN_FILE)):
            shutil.rmtree(storage.local(self.uri), ignore_errors=True)  # there is nothing to resume

    def tar(self, number: int, split: str) -> str:
        return storage.join(self.folder(number), tar_name(number, split))

    def record(self, number: int) -> Path:
        """The local file of a chunk's record; see `fetch`."""
        return (self.records if self.remote else storage.local(self.folder(number))) / record_name(number)

    def folder(self, number: int) -> str:
        return self.folders[(number - self.first) % len(self.folders)]

    def tidy(self) -> None:
        """Deletes unfinished files of killed programs in a local output. The caller holds the lock."""
        folder = storage.local(self.root)
        for path in [*folder.glob(f"{storage.TEMPORARY}*"), *storage.local(self.uri).rglob(f"{storage.TEMPORARY}*")]:
            path.unlink(missing_ok=True)

    def start(self, run: Run) -> None:
        """Resumes the work of an equal run; deletes the work of another one. The caller holds the lock."""
        content = self.run()
        if run.differences(content):
            if content is not None:
                self.discard()
            storage.write_bytes(storage.join(self.uri, RUN_FILE), run.to_json())

    def run(self) -> dict[str, Any] | None:
        """The content of run.json; None if there is none, {} if it is damaged."""
        try:
            data = storage.read_bytes(storage.join(self.uri, RUN_FILE))
        except FileNotFoundError:
            return None
        return storage.object_or_none(data, dict) or {}

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

    def fetch(self, numbers: list[int]) -> None:
        """Copies the records of these chunks from a bucket to this host."""
        if self.remote:
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(self.fetch_record, numbers))

    def fetch_record(self, number: int) -> None:
        if not self.record(number).exists():
            storage.download(storage.join(self.folder(number), record_name(number)), self.record(number))

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
