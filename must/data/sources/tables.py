"""Tables as a source: Parquet files, and Hugging Face data sets saved on disk. Rows hold images, or name their files.

A row in the middle of a table cannot be read without what was packed with it. So the listing, which reads a table once
and in pieces, copies its images one after the other to a plain file, which lasts as long as the run.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief, printable, without_secrets
from must.data.sources.archives import expanded
from must.data.sources.base import (
    EXPANDED,
    EXPANSION,
    Item,
    ListingReport,
    damage_named,
    folder_label,
    of_bounded_texts,
    told_apart,
    utf8_size,
)
from must.data.sources.files import is_split, refusal
from must.data.sources.table_files import TABLE_FILE, Table, find_tables, named, need_pyarrow, opened

USUAL = (
    "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes content data path image_path "
    "img_path file_path filepath file_name filename file uri image_uri url image_url"
)
USUAL_IMAGES = tuple(USUAL.split())
USUAL_LABELS = ("label", "labels", "class", "cls", "class_name", "label_name", "category", "target")


class ColumnNames(NamedTuple):
    """What the user said of a table's columns; "" is for the usual names."""

    image: str = ""
    label: str = ""


class Columns(NamedTuple):
    """Names of a table's columns, None for what it does not have."""

    image: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] | None  # names of the numbers in the column label
    paths: bool  # the column of images holds names of files, not their bytes

    @property
    def read(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.image, self.label, self.split) if name is not None))


def choose(schema: Any, features: Any, asked: ColumnNames, labels: str, where: str) -> Columns:
    """The columns to read of a table with this pyarrow schema.

    Args:
        features: those of Hugging Face's description of the table, anything else for none.
        labels: "folder", "csv" or "none", as `must shard --labels`.
        where: the option and file, for messages.

    Raises:
        ValueError: no column of images or labels, or several that might be; the line names the columns there are.
    """
    types = {name: storage_type(schema.field(number).type) for number, name in enumerate(schema.names)}
    there = f"its columns are {printable(', '.join(map(str, schema.names)), 300) or 'none'}"
    require(len(types) == len(schema.names), f"{where}: two columns have the same name; {there}")
    if asked.image:
        require(asked.image in types, f"{where}: no column {brief(asked.image)} (--image-column); {there}")
        image: str | None = asked.image
        require(
            may_be_image(types[asked.image]),
            f"{where}: the column {brief(asked.image)} holds {printable(types[asked.image], 80)}, neither an image's "
            "bytes nor names of files",
        )
    else:
        image = first_of(USUAL_IMAGES, {name: kind for name, kind in types.items() if may_be_image(kind)})
        if image is None:
            binary = [name for name, kind in types.items() if has_bytes(kind)]
            image = binary[0] if len(binary) == 1 else None
    require(image is not None, f"{where}: no column with a known image name; give --image-column; {there}")
    assert image is not None
    label = None
    if labels == "csv":
        if asked.label:
            require(asked.label in types, f"{where}: no column {brief(asked.label)} (--label-column); {there}")
            label = asked.label
        else:
            label = first_of(USUAL_LABELS, {name: kind for name, kind in types.items() if may_be_label(kind)})
        require(label is not None, f"{where}: no column of labels; name it with --label-column; {there}")
        assert label is not None
        require(
            may_be_label(types[label]),
            f"{where}: the column {brief(label)} holds {printable(types[label], 80)}, neither texts nor numbers",
        )
    split = "split" if "split" in types and is_text(types["split"]) else None
    return Columns(image, label, split, class_names(features, label), not has_bytes(types[image]))


def first_of(names: tuple[str, ...], there: dict[str, Any]) -> str | None:
    lower: dict[str, str] = {}
    for name in there:
        lower.setdefault(name.lower(), name)
    return next((lower[name] for name in names if name in lower), None)


def storage_type(kind: Any) -> Any:
    """The type of a dictionary's values, and of what an extension is stored as."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return storage_type(kind.value_type)
    return storage_type(kind.storage_type) if hasattr(kind, "storage_type") else kind


def is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or str(kind) == "binary_view"


def is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"


def has_bytes(kind: Any) -> bool:
    """Bytes, or Hugging Face's {bytes, path}."""
    from pyarrow import types

    if not types.is_struct(kind):
        return is_binary(kind)
    return any(kind.field(i).name == "bytes" and is_binary(kind.field(i).type) for i in range(kind.num_fields))


def may_be_image(kind: Any) -> bool:
    return has_bytes(kind) or is_text(kind)


def may_be_label(kind: Any) -> bool:
    from pyarrow import types

    return is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def features_in(metadata: Any) -> Any:
    """Hugging Face's features, which `datasets` writes into a table's own description; None for none."""
    return storage.object_or_none((metadata or {}).get(b"huggingface", b""), lambda found: found["info"]["features"])


def class_names(features: Any, label: str | None) -> tuple[str, ...] | None:
    """The names of a ClassLabel."""
    feature = features.get(label) if isinstance(features, dict) else None
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


ROW = 1000  # bytes that a row counts for besides its own: a file of some kilobytes may have any number of empty ones


class Row(NamedTuple):
    """What a row says of its image: bytes, or a path, or neither."""

    data: bytes | None
    path: str | None


class Tables:
    """One or more tables. Those in a bucket are downloaded while they are listed, one after the other.

    `may_be_remote` is known when the listing is done: whether a row has named a file.
    """

    may_be_remote = False

    def __init__(self, uri: str, tables: list[Table], labels: str, option: str, asked: ColumnNames) -> None:
        self.uri, self.tables, self.labels, self.option, self.asked = uri, tables, labels, option, asked
        self.folder = Path()

    def prepare(self, folder: Path) -> None:
        self.folder = folder

    @of_bounded_texts
    def items(self, problems: ListingReport) -> Iterator[Item]:
        for number, table in enumerate(self.tables):
            where = f"{self.option} {table.uri}"
            try:
                with storage.local_copy(table.uri) as path:
                    yield from self.items_of(number, table, path, where, problems)
            except FileNotFoundError:
                raise UserError(f"{where}: there is no such file") from None

    def items_of(self, number: int, table: Table, path: Path, where: str, problems: ListingReport) -> Iterator[Item]:
        damaged, left = partial(damage_named, where, "table"), max(EXPANDED, EXPANSION * path.stat().st_size)
        kind, place, row = table.uri.lower().rpartition(".")[2], 0, -1
        with ExitStack() as stack:
            with damaged():
                reader = stack.enter_context(opened(path, kind))
                features = features_in(reader.schema.metadata) if table.features is None else table.features
            columns = choose(reader.schema, features, self.asked, self.labels, where)
            too_large = f"{where}: its rows are more than {EXPANSION} times as large as itself"
            require(max(reader.largest, ROW * reader.rows) <= left, too_large)
            file = stack.enter_context(storage.open_write(self.packed(number)))
            with damaged():
                batches = reader.batches(columns.read, problems.max_bytes)
            while True:
                with damaged():
                    batch = next(batches, None)
                    if batch is None:
                        return
                if isinstance(batch, int):
                    left -= ROW * batch
                    require(left >= 0, too_large)
                    why = f"may be more than {problems.max_bytes / 1e6:g} MB, unpacked"
                    for passed in range(batch):
                        problems.reject(f"{table.name}/{row + 1 + passed}", why)
                    row += batch
                    continue
                with damaged():
                    rows = rows_of(batch, columns)
                for found, label, split in rows:
                    row += 1
                    name = f"{table.name}/{row}" + (f"/{found.path}" if found.path and found.data is not None else "")
                    label = self.label_of(label, found.path, columns, f"{where} row {row}")
                    if split in (None, ""):
                        split = table.split
                    elif not is_split(split):
                        raise UserError(f"{where} row {row}: {brief(split)} is no split name (lower-case, digits, _)")
                    left -= ROW + len(found.data or b"") + utf8_size(label or "") + utf8_size(found.path or "")
                    require(left >= 0, too_large)
                    if found.data:
                        file.write(found.data)
                        yield Item(name, len(found.data), label, split, [number, place])
                        place += len(found.data)
                    elif found.data is not None or not found.path:
                        problems.reject(name, "no image in this row")
                    elif reason := refusal(found.path):
                        problems.reject(without_secrets(file_name(table, found.path)), reason)
                    else:
                        self.may_be_remote = True
                        yield Item(file_name(table, found.path), 0, label, split, [number, found.path])

    def packed(self, number: int) -> Path:
        return self.folder / f"table-{number}.images"

    def label_of(self, value: Any, path: str | None, columns: Columns, where: str) -> str | None:
        if self.labels == "folder":
            return folder_label(path) if path else None
        if columns.classes is not None and type(value) is int:
            if value == -1:  # what `datasets` writes where there is none
                return None
            if not 0 <= value < len(columns.classes):
                raise UserError(f"{where}: the label {value} is none of the table's {len(columns.classes)} classes")
            value = columns.classes[value]
        return None if value in (None, "") else str(value)

    def read(self, item: Item, limit: int) -> bytes:
        number, place = item.locator
        if isinstance(place, int):
            return storage.read_bytes(self.packed(number), place, min(item.size, limit))
        uri = self.tables[number].uri
        if is_whole(place) or "/" not in uri:
            return storage.read_bytes(place, 0, limit)
        return storage.read_bytes(storage.join(uri.rpartition("/")[0] or "/", place), 0, limit)


def file_name(table: Table, path: str) -> str:
    """The name in the source of a file that a row names: tables in two folders mean two files by one path."""
    folder, slash, _ = table.name.rpartition("/")
    return path if is_whole(path) else folder + slash + path


def is_whole(path: str) -> bool:
    """Whether it is the same file wherever the table is."""
    return path.startswith("/") or "://" in path


def rows_of(batch: Any, columns: Columns) -> list[tuple[Row, Any, Any]]:
    """(image, label, split) of each row of a record batch."""
    images, labels, splits = (
        batch.column(name).to_pylist() if name is not None else [None] * batch.num_rows
        for name in (columns.image, columns.label, columns.split)
    )
    return list(zip(map(image_of, images), labels, splits, strict=True))


def image_of(value: Any) -> Row:
    if isinstance(value, dict):
        path = value.get("path")
        return Row(value.get("bytes"), path if isinstance(path, str) else None)
    return Row(value, None) if isinstance(value, bytes) else Row(None, value)


def open_tables(uri: str, labels: str, option: str, exclude: str, asked: ColumnNames) -> Tables | None:
    """The tables that `uri` means: a file, a range such as x-{000..009}.parquet, or a folder of them; None for neither.
    Raises ValueError: one is missing, or pyarrow is."""
    files = expanded(uri) if TABLE_FILE.search(uri) else []
    missing = [file for file in files if not storage.exists(file)]
    if not files or (files == [uri] and (missing if storage.is_remote(uri) else storage.local(uri).is_dir())):
        tables = find_tables(uri, option, exclude)  # Spark's folders are called x.parquet, too
        require(bool(tables or not files), f"{option} {uri}: there is no such file, and no tables are below it")
    else:
        require(not missing, f"{option} {uri}: there is no such file: {missing[0] if missing else ''}")
        tables = named(list(zip(files, told_apart(files), strict=True)))
    if not tables:
        return None
    need_pyarrow(f"{option} {uri}")
    return Tables(uri, tables, labels, option, asked)
