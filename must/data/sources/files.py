"""Folders, bucket prefixes and manifests of image files.

Listings are streamed; the workers read the images."""

import csv
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any, BinaryIO

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief
from must.data.sources.base import Item, ListingReport, Source, below, folder_label

LONGEST_ROW = 1_000_000  # bytes of a line of a manifest
OTHER_COLUMNS = {"image": "path", "class": "label"}  # as in the tables that `must` writes


class Folder(Source):
    """Image files below a folder or a gs:// prefix, without those in the folder `exclude` and the names `others`."""

    def __init__(self, uri: str, labels: str, exclude: str = "", others: Collection[str] = ()) -> None:
        self.uri, self.labels, self.others = uri, labels, others
        self.may_be_remote = storage.is_remote(uri)
        self.exclude = below(uri, exclude)

    def items(self, problems: ListingReport) -> Iterator[Item]:
        for entry in storage.list_files(self.uri, problems.reject):
            if (self.exclude and (entry.name + "/").startswith(self.exclude)) or entry.name in self.others:
                continue
            if problems.accepts(entry.name):
                label = folder_label(entry.name) if self.labels == "folder" else None
                yield Item(entry.name, entry.size, label, None, 0)

    def files(self, problems: ListingReport) -> Iterator[str]:
        return (storage.join(self.uri, item.name) for item in self.items(problems))

    def read(self, item: Item, limit: int) -> bytes:
        return storage.read_bytes(storage.join(self.uri, item.name), 0, limit)


class Manifest(Source):
    """A .csv, .tsv or .jsonl file with the columns path (or image), and optionally label (or class) and split.

    Columns are separated by what the first line has most of: commas, semicolons or tabs.
    Paths are absolute, gs:// URIs, or relative to the manifest."""

    def __init__(self, uri: str, labels: str, option: str) -> None:
        self.uri, self.labels, self.option = uri, labels, option
        self.may_be_remote = True  # its lines may have any path

    def items(self, problems: ListingReport) -> Iterator[Item]:
        file = self.uri.rpartition("/")[2]
        for line, row in self.rows():
            if problem := find_problem(row):
                path = row.get("path") if isinstance(row, dict) else None
                problems.reject(f"{file} line {line}" + (f": {brief(path)[1:-1]}" if path else ""), problem)
                continue
            path, label, split = row["path"], row.get("label"), row.get("split")
            if self.labels == "folder":
                label = folder_label(path)
            elif self.labels == "none":
                problems.unread_labels += label not in (None, "")
                label = None
            yield Item(path, 0, str(label) if label not in (None, "") else None, split or None, 0, line)

    def files(self, problems: ListingReport) -> Iterator[str]:
        return (beside(self.uri, item.name) for item in self.items(problems))

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line number, columns), as a stream. The columns are None for a line that is no JSON object."""
        where, ending = f"{self.option} {self.uri}", self.uri.lower().rpartition(".")[2]
        with storage.local_copy(self.uri) as path, path.open("rb") as file:
            lines = read_lines(file, where)
            if ending not in ("csv", "tsv"):
                yield from ((n, storage.object_or_none(line, dict)) for n, line in enumerate(lines, 1) if line.strip())
                return
            first = next(lines, "")
            delimiter = max("\t,;" if ending == "tsv" else ",;\t", key=first.count)
            table = csv.DictReader(chain([first], lines), delimiter=delimiter)
            try:
                table.fieldnames = [OTHER_COLUMNS.get(name, name) for name in table.fieldnames or ()]
                require(
                    "path" in table.fieldnames,
                    f"{where}: the first line must name the columns path[,label][,split], not: "
                    f"{brief(delimiter.join(table.fieldnames))}",
                )
                yield from ((table.line_num, row) for row in table)
            except csv.Error as error:
                raise UserError(f"{where}: cannot be read after line {table.line_num}: {error}") from None

    def read(self, item: Item, limit: int) -> bytes:
        return storage.read_bytes(beside(self.uri, item.name), 0, limit)


def read_lines(file: BinaryIO, where: str) -> Iterator[str]:
    """The lines as text. One that is too long is refused: parsed, it would take many times its size."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW + 1), b""), 1):
        require(len(line) <= LONGEST_ROW, f"{where}: line {number} is longer than {LONGEST_ROW} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: line {number} cannot be read: {error}") from None


def find_problem(row: Any) -> str:
    """Why a line of a manifest is rejected, "" if it is not."""
    if not isinstance(row, dict):
        return "not a JSON object"
    path, label, split = row.get("path"), row.get("label"), row.get("split")
    if not isinstance(path, str) or not path:
        return "no 'path'; the columns are path[,label][,split]"
    if reason := refusal(path):
        return reason
    if split not in (None, "") and not is_split(split):
        return "not a split name (lower-case, digits, _)"
    if not (label is None or isinstance(label, str | int | float)):
        return "the label is not text"
    return ""


def refusal(path: str) -> str:
    """Why there can be no file at that path, "" if there can. Surrogates may stand for bytes that are not UTF-8."""
    try:
        is_name = b"\0" not in path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        return "no name that a file can have"
    try:
        storage.is_remote(path)
    except ValueError:
        return "only local paths and gs://, s3:// and az:// are read"
    return ""


def beside(uri: str, path: str) -> str:
    """A path in the list or table at `uri`, which is absolute or relative to its folder."""
    folder, slash, _ = uri.rpartition("/")
    return path if path.startswith("/") or "://" in path else folder + slash + path


def is_split(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.islower() and len(name) <= 50  # a part of file names
