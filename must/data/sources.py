"""What images come from: folders, bucket prefixes, manifests; `must.data.archives` adds archives and shards.

Listings are streamed; images are read by the workers.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from must import storage
from must.parameters import require
from must.text import brief

EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif mpo png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpx avif ico tga".split()  # noqa: SIM905
)
ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz)$", re.IGNORECASE)


class Item(NamedTuple):
    """One file that should be an image. It goes through files as a JSON list, so its fields are plain values."""

    name: str  # unique in its source; with "/" between folders
    size: int  # bytes, 0 when the listing does not say
    label: str | None
    split: str | None  # where the source itself says so
    place: Any  # what the source needs to find it again


class UnreadableError(Exception):
    """One image cannot be had from its source, for the reason given; the others may be whole."""


class Problems:
    """What a listing found besides images."""

    def __init__(self, reject: Callable[[str, str], None]) -> None:
        self.reject = reject  # (name, reason): goes to rejected.jsonl
        self.skipped: Counter[str] = Counter()  # files that nobody would take for images, by extension


class Source(Protocol):
    uri: str
    slow: bool  # reading waits for a network, so that several reads should be on their way at once

    def prepare(self, folder: Path) -> None:
        """Called once before anything else; `folder` is local and lasts as long as the run."""

    def items(self, problems: Problems) -> Iterator[Item]:
        """All images, in any order."""

    def read(self, item: Item, limit: int) -> bytes:
        """An image's bytes, at most `limit` of them.

        Raises:
            UnreadableError, OSError: this one cannot be read; it is set aside.
            ValueError: the source as a whole cannot be read, for want of credentials for instance.
        """


def open_source(uri: str, labels: str, option: str, exclude: str = "") -> Source:
    """The source at `uri`.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        option: the flag it was given with, for messages.
        exclude: a folder that is not listed though it lies inside: the output.

    Raises:
        ValueError: there is nothing, or nothing of a known kind.
    """
    from must.data.archives import open_archives  # it needs this module

    if uri.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")):
        require(storage.exists(uri), f"{option} {uri}: there is no such file")
        require(storage.is_remote(uri) or storage.local(uri).is_file(), f"{option} {uri}: not a file")
        return Manifest(uri, labels, option)
    several = "{" in uri and bool(ARCHIVE.search(uri))
    if not storage.is_remote(uri) and not several:
        path = storage.local(uri)
        require(path.exists(), f"{option} {uri}: there is no such folder or file")
        require(os.access(path, os.R_OK), f"{option} {uri}: no permission to read it")
        require(
            path.is_dir() or (path.is_file() and bool(ARCHIVE.search(uri))),
            f"{option} {uri}: expected a folder of images, a .csv or .jsonl manifest, or a .tar or .zip archive",
        )
    return open_archives(uri, labels, option, below(uri, exclude)) or Folder(uri, labels, exclude)


class Folder:
    """Image files below a folder or a gs:// prefix."""

    def __init__(self, uri: str, labels: str, exclude: str = "") -> None:
        self.uri, self.labels = uri, labels
        self.slow = storage.is_remote(uri)
        self.exclude = below(uri, exclude)

    def prepare(self, folder: Path) -> None:
        pass

    def items(self, problems: Problems) -> Iterator[Item]:
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


def kind_of(name: str) -> str | None:
    """None for what may be an image: a known extension, or none at all. Else what it is skipped as."""
    base = name.rpartition("/")[2]
    if base.startswith("."):
        return "hidden"
    _, dot, extension = base.rpartition(".")
    return None if not dot or extension.lower() in EXTENSIONS else f".{extension.lower()[:12]}"


def folder_label(name: str) -> str | None:
    """The name of the folder the image lies in; None directly in the root."""
    return name.rpartition("/")[0].rpartition("/")[2] or None


def below(root: str, folder: str) -> str:
    """`folder` relative to `root` with a "/" behind it, or "" if it lies elsewhere."""
    if not folder or storage.is_remote(root) != storage.is_remote(folder):
        return ""
    root, folder = normal(root), normal(folder)
    return folder[len(root) :] if folder.startswith(root) and folder != root else ""


def normal(uri: str) -> str:
    """One spelling of a folder, with a "/" at its end."""
    return (uri if storage.is_remote(uri) else str(storage.local(uri).resolve())).rstrip("/") + "/"


def is_within(place: str, folder: str) -> bool:
    """Whether `place` is the folder or lies in it."""
    return bool(below(folder, place)) or (
        storage.is_remote(folder) == storage.is_remote(place) and normal(folder) == normal(place)
    )


class Manifest:
    """A .csv, .tsv or .jsonl file with the columns path, and optionally label and split.

    Paths are absolute, gs:// URIs, or relative to the manifest.
    """

    def __init__(self, uri: str, labels: str, option: str) -> None:
        self.uri, self.labels, self.option = uri, labels, option
        self.slow = True  # its lines may name any place
        self.base = uri.rpartition("/")[0] or ("" if not uri.startswith("/") else "/")

    def prepare(self, folder: Path) -> None:
        pass

    def items(self, problems: Problems) -> Iterator[Item]:
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
        with self.local_copy() as path, path.open(encoding="utf-8-sig", newline="") as file:
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
                raise ValueError(f"{self.option} {self.uri}: cannot be read behind line {number}: {error}") from None

    def parsed(self, line: str, number: int) -> dict[str, Any]:
        where = f"{self.option} {self.uri} line {number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: cannot be read: {error}") from None
        require(isinstance(content, dict), f"{where}: expected a JSON object")
        return content

    def local_copy(self) -> Any:
        return LocalCopy(self.uri)

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


class LocalCopy:
    """A context manager: the path of a local file, or of a downloaded copy that is deleted afterwards."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.copy: Path | None = None

    def __enter__(self) -> Path:
        if not storage.is_remote(self.uri):
            return storage.local(self.uri)
        self.copy = Path(tempfile.mkdtemp(prefix="must-")) / "copy"
        storage.download(self.uri, self.copy)
        return self.copy

    def __exit__(self, *error: object) -> None:
        if self.copy is not None:
            storage.delete_folder(self.copy.parent)
