"""Which images `must predict` labels: those of files, folders, archives, shards, tables and lists, found as a stream;
of these a part (`--part`), and those that are not in a table yet (`--known`).

A part is a file of its own, with the images whose names' hash modulo N is I - 1, in the folder OUTPUT.parts. Its rows
say which content of an image they are of and which model gave them, so a part needs no other record."""

import glob
import hashlib
import logging
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import encode_utf8, escape_controls, make_printable, pluralize
from must.config.defaults import list_parts, parse_part
from must.data.shards.listing import identify_source, open_source
from must.data.sources.archives import Archives, expand_range
from must.data.sources.files import (
    ARCHIVE,
    Folder,
    Item,
    ListingReport,
    Source,
    UnreadableError,
    describe_no_images,
    hash_name,
    resolve_beside,
)
from must.data.sources.tables import TABLE_FILE
from must.prediction.writer import FORMATS, Row, list_columns, open_table, read_table

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
            yield from list_images_of(name, problems, stack)
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


def list_images_of(uri: str, problems: ListingReport, stack: ExitStack) -> Iterator[Found]:
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
        problems.reject(uri, describe_no_images(inside.skipped))


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
        name = storage.join(source.uri, item.name) if inside else resolve_beside(source.uri, item.name)
        yield Found(name, str(item.size or ""), source, item)


def is_picture_on_stdin() -> bool:
    """Whether the first bytes of stdin contain NUL, as in every picture's file and in no list of names."""
    buffer: Any = getattr(sys.stdin, "buffer", None)
    return buffer is not None and b"\0" in buffer.peek(PEEKED)[:PEEKED]


def require_images(names: list[str]) -> None:
    """Called before the model is loaded: at least one of the files must exist."""
    existing = [
        name for name in names if name == "-" or storage.is_remote(name) or storage.exists(expand_range(name)[0])
    ]
    existing = existing or [name for name in names if glob.glob(name, recursive=True)]  # noqa: PTH207
    more = f", and {len(names) - 1:,} more" if len(names) > 1 else ""
    require(bool(existing), f"{make_printable(names[0])}: no such file{more}")


logger = logging.getLogger(__name__)

OWN_COLUMNS = ["model", "version", "error"]
PART = re.compile(r"part-([0-9]{5,9})-of-([0-9]{5,9})(\.\w+)")


def find_parts_folder(output: str) -> str:
    return f"{output}.parts"


def find_part_file(output: str, part: str) -> str:
    number, parts = parse_part(part)
    return storage.join(
        find_parts_folder(output), f"part-{number:05}-of-{parts:05}.{output.lower().rpartition('.')[2]}"
    )


def select_part(found: Iterator[Found], part: str) -> Iterator[Found]:
    """The images of part I/N, by the hash of `must shard --part`. Raises UserError: there are none in any part."""
    (number, parts), empty = parse_part(part), True
    for one in found:
        empty = False
        if hash_name(one.item.name if one.item else one.name) % parts == number - 1:
            yield one
    require(not empty, "no image there: give a folder, a bucket, an archive, a table or a list that has some")


def find_parts(output: str) -> tuple[int, list[int]]:
    """(N, the parts I that are there). Raises UserError: there are parts of several N."""
    matches = [PART.fullmatch(entry.name) for entry in storage.list_existing(find_parts_folder(output))]
    there = {
        (int(match[2]), int(match[1])) for match in matches if match and match[3] == output.lower()[-len(match[3]) :]
    }
    counts = sorted({count for count, _ in there})
    others = " and ".join(map(str, counts))
    require(len(counts) < 2, f"{find_parts_folder(output)}: has parts of {others}; delete those that are not wanted")
    return (counts or [0])[0], sorted(number for _, number in there)


def require_same_parts(output: str, part: str) -> None:
    count, parts = find_parts(output)[0], parse_part(part)[1]
    require(
        count in (0, parts),
        f"--part {part}: {find_parts_folder(output)} has parts of {count}; go on with these, or take another --output",
    )


def join_parts(output: str) -> int:
    """Writes the rows of all parts to `output`; the number of rows; -1 if there are no parts."""
    count, there = find_parts(output)
    if not count:
        return -1
    missing = [part for number, part in enumerate(list_parts(count), 1) if number not in there]
    require(
        not missing,
        f"{find_parts_folder(output)} lacks {len(missing)} of {count} parts: "
        f"--part {make_printable(', '.join(missing), 300)}",
    )
    files = [find_part_file(output, part) for part in list_parts(count)]
    first = next((row for file in files for row in read_table(file)), None)
    columns, models = list(first or list_columns(1, OWN_COLUMNS)), Counter[str]()
    with open_table(output, columns) as write:
        for file in files:
            for row in read_table(file):
                other = f"{file}: has other columns than other parts (--top-k, --embeddings); label it again"
                require(list(row) == columns, other)
                models[str(row.get("model"))] += 1
                write(row)
    logger.info(f"{count} parts joined, {pluralize(models.total(), 'row')}; nothing was labelled -> {output}")
    if len(models) > 1:
        rows = ", ".join(f"{name} {number:,}" for name, number in models.most_common(5))
        logger.warning(f"warning: {output}: rows are by several models: {make_printable(rows)}")
    return models.total()


def hash_version(name: str, version: str) -> int:
    """Of an image's name, as any table has it, and its version."""
    text = encode_utf8(escape_controls(name)) + b"\0" + version.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def hash_row(row: Row, where: str) -> int:
    own = {"image", "version", "model"} <= row.keys()
    require(own, f"{where}: has no columns image, version and model; made without --part or --known, or damaged")
    return hash_version(row["image"], row["version"] or "")


def find(keys: np.ndarray, key: int) -> int:
    """The position of a key among uint64 [n], sorted; -1 if it is not there."""
    position = int(np.searchsorted(keys, np.uint64(key)))
    return position if position < len(keys) and keys[position] == key else -1


class Known:
    """The images that have a row in `output`, the table that is continued, or at --known: 9 bytes of memory each.

    Args:
        output: the table, or a part of it; `target`: --output, which is the table that the part is of.
        known: --known. If it is the place of `target`, rows of other models stay. The rows of other parts, and of the
            joined table, are not read: they say nothing about the images of this part.
        relabel: rows of other models than `model` are left out.

    Raises UserError: `output` has other columns, or rows of another model that neither option is about."""

    def __init__(self, output: str, target: str, known: str, columns: list[str], model: str, relabel: bool) -> None:
        self.output, self.exists, self.left_out = output, storage.exists(output), 0
        in_place = bool(known) and identify_source(known) == identify_source(target)
        contradiction = f"--relabel labels rows of other models again, --known {known} keeps them; give one of them"
        require(not (in_place and relabel), contradiction)
        in_parts = in_place and output == target and bool(find_parts(target)[0])
        require(not in_parts, f"--known {known}: this table is in parts; give --part I/N")
        places = [output] if in_place else list_tables(known, output) if known else []
        own, others = array("Q"), array("Q")
        for row in read_table(output) if self.exists else ():
            key, by = hash_row(row, output), str(row["model"])
            if relabel and by != model:
                self.left_out += 1
                continue
            hint = "(--top-k, --embeddings); delete it, or take another --output"
            require(list(row) == columns, f"{output}: has other columns than these options give {hint}")
            require(
                by == model or output in places,
                f"{output}: was labelled by model {make_printable(by, 20)}, this is {model} (or other classes, or "
                "--abstain); --relabel labels its images again, --known OUTPUT keeps its rows",
            )
            own.append(key)
        for place in places:
            others.extend(hash_row(row, f"--known {place}") for row in (read_table(place) if place != output else ()))
        self.own, self.others = np.unique(np.array(own, np.uint64)), np.unique(np.array(others, np.uint64))
        self.seen = np.zeros(len(self.own), bool)

    @property
    def is_complete(self) -> bool:
        """Whether the table has the rows that it would be written with, if no image is new."""
        return self.exists and not self.left_out and bool(self.seen.all())

    def is_new(self, found: Found) -> bool:
        """Whether it has no row yet. Notes that an image of `output` is still there."""
        key = hash_version(found.name, found.version)
        if (position := find(self.own, key)) >= 0:
            self.seen[position] = True
            return False
        return find(self.others, key) < 0

    def kept(self) -> Iterator[Row]:
        """The rows of `output` that stay: their images are still there."""
        for row in read_table(self.output) if self.exists else ():
            position = find(self.own, hash_row(row, self.output))
            if position >= 0 and self.seen[position]:
                yield row


def list_tables(known: str, output: str) -> list[str]:
    """The tables of --known: a file with its parts, or a folder.
    Raises UserError: there are none, and it is not the folder of `output`."""
    files = [known] if known.lower().endswith(FORMATS) and storage.exists(known) and not is_folder(known) else []
    for folder in (known, find_parts_folder(known)):
        inside = [] if files and folder == known else storage.list_existing(folder)
        files += sorted(storage.join(folder, entry.name) for entry in inside if entry.name.lower().endswith(FORMATS))
    here = identify_source(output) == identify_source(storage.join(known, output.rpartition("/")[2]))
    if not files and not here:
        raise UserError(f"--known {known}: no table there")
    return [*files, *([output] if here and output not in files else [])]


def is_folder(uri: str) -> bool:
    return not storage.is_remote(uri) and storage.local(uri).is_dir()
