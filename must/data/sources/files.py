"""Folders, bucket prefixes and manifests of image files.

Listings are streamed; images are read by the workers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.base.text import brief
from must.data.sources.base import Item, ListingReport, below, folder_label, kind_of, of_bounded_texts


class Folder:
    """Image files below a folder or a gs:// prefix."""

    def __init__(self, uri: str, labels: str, exclude: str = "") -> None:
        self.uri, self.labels = uri, labels
        self.may_be_remote = storage.is_remote(uri)
        self.exclude = below(uri, exclude)

    def prepare(self, folder: Path) -> None:
        pass

    @of_bounded_texts
    def items(self, problems: ListingReport) -> Iterator[Item]:
        for entry in storage.list_files(self.uri, problems.reject):
            if self.exclude and (entry.name + "/").startswith(self.exclude):
                continue
            kind = kind_of(entry.name)
            if kind is not None:
                problems.skipped[kind] += 1
                continue
            yield Item(entry.name, entry.size, folder_label(entry.name) if self.labels == "folder" else None, None, 0)

    def read(self, item: Item, limit: int) -> bytes:
        return storage.read_bytes(storage.join(self.uri, item.name), 0, limit)


class Manifest:
    """A .csv, .tsv or .jsonl file with the columns path, and optionally label and split.

    Paths are absolute, gs:// URIs, or relative to the manifest.
    """

    def __init__(self, uri: str, labels: str, option: str) -> None:
        self.uri, self.labels, self.option = uri, labels, option
        self.may_be_remote = True  # its lines may name any place
        self.base = uri.rpartition("/")[0] or ("" if not uri.startswith("/") else "/")

    def prepare(self, folder: Path) -> None:
        pass

    @of_bounded_texts
    def items(self, problems: ListingReport) -> Iterator[Item]:
        for line, row in self.rows():
            path = row.get("path")
            require(
                isinstance(path, str) and bool(path),
                f"{self.option} {self.uri} line {line}: no 'path'; the columns are path[,label][,split]",
            )
            assert isinstance(path, str)
            if not is_name(path):
                problems.reject(path, "no name that a file can have")
                continue
            label, split = row.get("label"), row.get("split")
            require(
                split in (None, "") or is_split(split),
                f"{self.option} {self.uri} line {line}: {brief(split)} is no split name (lower-case, digits, _)",
            )
            require(
                label is None or isinstance(label, str | int | float),
                f"{self.option} {self.uri} line {line}: the label is no text",
            )
            if self.labels == "folder":
                label = folder_label(path)
            elif self.labels == "none":
                label = None
            yield Item(path, 0, str(label) if label not in (None, "") else None, split or None, 0)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, columns), read as a stream."""
        number = 0
        with storage.local_copy(self.uri) as path, path.open(encoding="utf-8-sig", newline="") as file:
            try:
                if self.uri.lower().endswith((".csv", ".tsv")):
                    table = csv.DictReader(file, dialect="excel-tab" if self.uri.lower().endswith(".tsv") else "excel")
                    require(
                        "path" in (table.fieldnames or ()),
                        f"{self.option} {self.uri}: the first line must name the columns path[,label][,split]",
                    )
                    for row in table:
                        number = table.line_num
                        yield number, row
                else:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield number, self.parsed(line, number)
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{self.option} {self.uri}: cannot be read after line {number}: {error}") from None

    def parsed(self, line: str, number: int) -> dict[str, Any]:
        where = f"{self.option} {self.uri} line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: cannot be read: {error}") from None
        require(isinstance(content, dict), f"{where}: expected a JSON object")
        return content

    def read(self, item: Item, limit: int) -> bytes:
        name = item.name
        absolute = name.startswith("/") or "://" in name
        return storage.read_bytes(name if absolute or not self.base else storage.join(self.base, name), 0, limit)


def is_split(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.islower() and len(name) <= 50  # it is part of a name


def is_name(path: str) -> bool:
    """Whether a file can have it. Of lone surrogates those can be that Python has for bytes that are no text."""
    try:
        return b"\0" not in path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
