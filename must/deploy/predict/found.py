"""Finds the images of `must predict`: files, folders and buckets, archives, shards, tables and lists, as a stream."""

import glob
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from must.base import storage
from must.base.parameters import require
from must.base.text import printable
from must.data.shards.listing import open_source
from must.data.sources.archives import Archives, expanded
from must.data.sources.files import ARCHIVE, Folder, Item, ListingReport, Source, UnreadableError, beside, no_images
from must.data.sources.tables import TABLE_FILE

PEEKED = 4096  # bytes of standard input that are examined: is it a picture, or names?
LARGEST = 256_000_000  # bytes of an image's file
SORTED = 20_000  # names of a local folder that are in memory at once, in order
LIST = re.compile(r"\.(csv|tsv|jsonl|ndjson)$", re.IGNORECASE)


class Found(NamedTuple):
    """An image. `name`: its path or URI; in an archive or a table, that of the file, then the member or row; `version`:
    changes with its content, where the listing says it; `source`, `item`: how it is read, if not by its name."""

    name: str
    version: str = ""
    source: Source | None = None
    item: Item | None = None

    def read(self) -> bytes:
        """Raises UnreadableError, OSError: this image cannot be read; UserError: nor can the others of its source."""
        if self.source is None or self.item is None:
            return sys.stdin.buffer.read() if self.name == "-" else storage.read_bytes(self.name)
        data = self.source.read(self.item, LARGEST + 1)
        if len(data) > LARGEST:
            raise UnreadableError(f"more than {LARGEST} bytes")
        return data


def find_images(arguments: list[str], problems: ListingReport, stack: ExitStack) -> Iterator[Found]:
    """The files that are named; the images of folders (recursively), archives, tables and lists, as in
    `must shard`; matches of globs; for '-' the names on stdin, or '-' itself if stdin is a picture. An argument
    without images is a problem. Images may be read until `stack` is closed."""
    for name in arguments:
        if name == "-" and not is_picture_on_stdin():
            empty = True
            for line in filter(str.strip, sys.stdin):
                empty = False
                yield Found(line.rstrip("\n"))
            if empty:
                problems.reject(name, "standard input holds neither names nor a picture")
        elif name != "-" and (storage.is_remote(name) or storage.local(name).is_dir() or is_many(name)):
            yield from images_in(name, problems, stack)
        elif glob.has_magic(name) and not storage.exists(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
            if not matches:
                problems.reject(name, "matches no file")
            yield from map(Found, matches)
        else:
            yield Found(name)


def is_many(name: str) -> bool:
    """Whether it is named as an archive, a table or a list."""
    return any(form.search(name) for form in (ARCHIVE, TABLE_FILE, LIST))


def images_in(uri: str, problems: ListingReport, stack: ExitStack) -> Iterator[Found]:
    """The images of a source; a URI with nothing below it may be a file's."""
    inside = ListingReport(lambda name, why: problems.reject(storage.join(uri, name), why), LARGEST)
    source, empty = open_source(uri, "none", "images"), True
    if not isinstance(source, Folder):
        source.prepare(Path(stack.enter_context(TemporaryDirectory(prefix="must-"))))
    for found in list_source(source, inside):
        empty = False
        yield found
    problems.skipped.update(inside.skipped)
    if empty and not inside.skipped and storage.is_remote(uri) and storage.exists(uri):
        yield Found(uri)
    elif empty:
        problems.reject(uri, no_images(inside.skipped))


def list_source(source: Source, problems: ListingReport) -> Iterator[Found]:
    """Memory does not grow with the number of images. Buckets list names in order; so is a local folder, in blocks of
    SORTED names."""
    if isinstance(source, Folder):
        found = (
            Found(storage.join(source.uri, name), f"{size}-{version}", source, Item(name, size, None, None, 0))
            for name, size, version in source.entries(problems)
        )
        while block := list(islice(found, 1 if source.may_be_remote else SORTED)):
            yield from sorted(block)
        return
    of_one = isinstance(source, Archives) and not source.names
    inside = of_one or not is_many(source.uri)
    for item in problems.without_long_texts(source.items(problems)):
        name = storage.join(source.uri, item.name) if inside else beside(source.uri, item.name)
        yield Found(name, str(item.size or ""), source, item)


def is_picture_on_stdin() -> bool:
    """Whether the first bytes of stdin contain NUL, as in every picture's file and in no list of names."""
    buffer: Any = getattr(sys.stdin, "buffer", None)
    return buffer is not None and b"\0" in buffer.peek(PEEKED)[:PEEKED]


def require_images(names: list[str]) -> None:
    """Called before the model is loaded: at least one of the files must exist."""
    existing = [name for name in names if name == "-" or storage.is_remote(name) or storage.exists(expanded(name)[0])]
    existing = existing or [name for name in names if glob.glob(name, recursive=True)]  # noqa: PTH207
    more = f", and {len(names) - 1:,} more" if len(names) > 1 else ""
    require(bool(existing), f"{printable(names[0])}: no such file{more}")
