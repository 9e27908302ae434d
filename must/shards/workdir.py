"""The folder `.shard` in the output, where a run keeps what it has done until the index is written."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from must import storage
from must.format import index
from must.names import TABLE
from must.shards.chunk import record_name

NAME = ".shard"
RUN = "run.json"
SHARD = re.compile(r"[^\W\d]\w*-[0-9]{6,12}\.(tar|npy)")  # as must.names has it, and its table
WRITTEN = re.compile(rf"{SHARD.pattern}|{TABLE.pattern}|rejected\.jsonl")


class Work:
    """`uri` holds pieces and records; `local` is a folder on this host for lists, and for the records' copies.

    For a local output both are the same folder, which a killed run leaves behind. For a bucket `local` is temporary.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self.uri = storage.join(output, NAME)
        self.remote = storage.is_remote(output)
        self.local = Path(tempfile.mkdtemp(prefix="must-shard-")) if self.remote else storage.local(self.uri)
        self.records = self.local / "records"

    def __enter__(self) -> Work:
        with storage.disk_errors(self.local):
            self.records.mkdir(parents=True, exist_ok=True)
        if not self.remote:  # what a killed run was writing; the caller holds the lock
            for folder in (self.local, self.records, storage.local(self.output)):
                for path in folder.glob(f"{storage.TEMPORARY}*"):
                    path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        # Without RUN it failed before there was anything to go on with.
        if self.remote or not (self.local / RUN).exists():
            shutil.rmtree(self.local, ignore_errors=True)
        else:  # the lists are made anew by each run
            for folder in self.local.glob("plan-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def start(self, run: dict[str, Any]) -> None:
        """Goes on with the work of an equal run; throws the work of another one away."""
        path, data = storage.join(self.uri, RUN), json.dumps(run).encode()
        try:
            if storage.read_bytes(path) == data:
                return
            self.discard()
        except FileNotFoundError:
            pass
        storage.write_bytes(path, data)

    def discard(self) -> None:
        """Deletes records, pieces, and the shards that the other run has finished without an index."""
        for entry in list(storage.list_files(self.uri)):
            if not entry.name.startswith("plan-"):
                storage.delete(storage.join(self.uri, entry.name))
        known: set[str] = set()
        if storage.exists(storage.join(self.output, index.NAME)):
            for shard in index.load_index(self.output).shards:
                known |= {shard.name, shard.offsets_name}
        for entry in list(storage.list_files(self.output)):
            if SHARD.fullmatch(entry.name) and entry.name not in known:
                storage.delete(storage.join(self.output, entry.name))

    def done(self, numbers: list[int]) -> set[int]:
        """The units that have a record; records in a bucket are fetched."""
        wanted = {record_name(number): number for number in numbers}
        if self.remote:
            names = [entry.name for entry in storage.list_files(self.uri) if entry.name in wanted]
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda name: storage.download(storage.join(self.uri, name), self.records / name), names))
        return {wanted[path.name] for path in self.records.iterdir() if path.name in wanted}

    def clear(self) -> None:
        """Deletes everything: the run has come to its end."""
        if self.remote:
            storage.delete_folder(self.uri)
        shutil.rmtree(self.local, ignore_errors=True)
