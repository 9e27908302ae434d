"""Tables as a source: Parquet files, and Hugging Face data sets saved on disk. Rows have images, or paths of them.

A row cannot be read without the rows that were compressed with it. So the listing, which reads a table once and in
batches, copies its images one after the other to a plain file, which exists for the time of the run.
"""

from collections.abc import Callable, Iterator
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
    folder_label,
    limit_texts,
    relative_names,
    report_damage,
    utf8_size,
)
from must.data.sources.files import is_split, refusal
from must.data.sources.table_files import TABLE_FILE, Table, find_tables, need_pyarrow, open_table, tables_of

USUAL = (
    "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes content data path image_path "
    "img_path file_path filepath file_name filename file uri image_uri url image_url"
)
USUAL_IMAGES = tuple(USUAL.split())
USUAL_LABELS = ("label", "labels", "class", "cls", "class_name", "label_name", "category", "target")


class ColumnNames(NamedTuple):
    """The columns that the user has named; "" means a usual name."""

    image: str = ""
    label: str = ""


class Columns(NamedTuple):
    """Names of a table's columns, None for one that it does not have."""

    image: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] | None  # names of the class numbers in the column of labels
    paths: bool  # the column of images has paths of files, not their bytes

    @property
    def read(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.image, self.label, self.split) if name is not None))


def choose(schema: Any, names: ColumnNames, labels: str, where: str) -> Columns:
    """The columns to read of a table with this pyarrow schema.

    Args:
        labels: "folder", "csv" or "none", as `must shard --labels`.
        where: the option and file, for messages.

    Raises:
        ValueError: no column of images or labels, or several possible ones; the message has the names of all columns.
    """
    types = {name: storage_type(schema.field(number).type) for number, name in enumerate(schema.names)}
    hint = f"its columns are {printable(', '.join(map(str, schema.names)), 300) or 'none'}"
    require(len(types) == len(schema.names), f"{where}: two columns have the same name; {hint}")
    image = column_of(types, names.image, USUAL_IMAGES, may_be_image, f"{where}: --image-column", hint)
    if image is None:
        binary = [name for name, kind in types.items() if has_bytes(kind)]
        require(len(binary) == 1, f"{where}: no column with a known image name; give --image-column; {hint}")
        image = binary[0]
    label = None
    if labels == "csv":
        label = column_of(types, names.label, USUAL_LABELS, may_be_label, f"{where}: --label-column", hint)
        require(label is not None, f"{where}: no column of labels; name it with --label-column; {hint}")
    split = "split" if "split" in types and str(types["split"]) in TEXT else None
    return Columns(image, label, split, class_names(schema.metadata, label), not has_bytes(types[image]))


def column_of(
    types: dict[str, Any], name: str, usual: tuple[str, ...], is_usable: Callable[[Any], bool], flag: str, hint: str
) -> str | None:
    """The column `name`, or without a name the first one with a usual name; None if there is none.
    Raises ValueError: there is no column `name`, or it is of an unusable type."""
    if name:
        require(name in types, f"{flag}: no column {brief(name)}; {hint}")
        require(is_usable(types[name]), f"{flag}: the column {brief(name)} is of type {printable(types[name], 80)}")
        return name
    lower: dict[str, str] = {}
    for column, kind in types.items():
        if is_usable(kind):
            lower.setdefault(column.lower(), column)
    return next((lower[column] for column in usual if column in lower), None)


def storage_type(kind: Any) -> Any:
    """The type without dictionaries and extensions: that of the values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return storage_type(kind.value_type)
    return storage_type(kind.storage_type) if hasattr(kind, "storage_type") else kind


BINARY, TEXT = ({f"{form}{kind}" for form in ("", "large_")} | {f"{kind}_view"} for kind in ("binary", "string"))


def has_bytes(kind: Any) -> bool:
    """Whether it is bytes, or Hugging Face's {bytes, path}."""
    from pyarrow import types

    fields = list(kind) if types.is_struct(kind) else []
    return str(kind) in BINARY or any(field.name == "bytes" and str(field.type) in BINARY for field in fields)


def may_be_image(kind: Any) -> bool:
    return has_bytes(kind) or str(kind) in TEXT


def may_be_label(kind: Any) -> bool:
    from pyarrow import types

    return str(kind) in TEXT or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def class_names(metadata: Any, label: str | None) -> tuple[str, ...] | None:
    """The class names if the column is a ClassLabel by the features that `datasets` writes into a table's metadata."""
    text = (metadata or {}).get(b"huggingface", b"")
    feature = storage.object_or_none(text, lambda content: content["info"]["features"][label])
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


ROW = 1000  # bytes added to each row's size: a file of some kilobytes may have millions of empty rows


class Tables:
    """One or more tables. Those in a bucket are downloaded while they are listed, one after the other.

    `may_be_remote` is set by the listing if a row has the path of a file.
    """

    may_be_remote = False

    def __init__(self, uri: str, tables: list[Table], labels: str, option: str, columns: ColumnNames) -> None:
        self.uri, self.tables, self.labels, self.option, self.columns = uri, tables, labels, option, columns
        self.folder = Path()

    def prepare(self, folder: Path) -> None:
        self.folder = folder

    @limit_texts
    def items(self, problems: ListingReport) -> Iterator[Item]:
        for number, table in enumerate(self.tables):
            where = f"{self.option} {table.uri}"
            try:
                with storage.local_copy(table.uri) as path:
                    yield from self.items_of(number, table, path, where, problems)
            except FileNotFoundError:
                raise UserError(f"{where}: there is no such file") from None

    def items_of(self, number: int, table: Table, path: Path, where: str, problems: ListingReport) -> Iterator[Item]:
        damaged, remaining = partial(report_damage, where, "table"), max(EXPANDED, EXPANSION * path.stat().st_size)
        kind, offset, row = table.uri.lower().rpartition(".")[2], 0, -1
        with ExitStack() as stack:
            with damaged():
                reader = stack.enter_context(open_table(path, kind))
            columns = choose(reader.schema, self.columns, self.labels, where)
            too_large = f"{where}: its rows are more than {EXPANSION} times as large as itself"
            require(max(reader.largest, ROW * reader.rows) <= remaining, too_large)
            file = stack.enter_context(storage.open_write(self.packed(number)))
            with damaged():
                batches = reader.batches(columns.read, problems.max_bytes)
            while True:
                with damaged():
                    batch = next(batches, None)
                    if batch is None:
                        return
                if isinstance(batch, int):
                    remaining -= ROW * batch
                    require(remaining >= 0, too_large)
                    why = f"may be more than {problems.max_bytes / 1e6:g} MB, unpacked"
                    for _ in range(batch):
                        row += 1
                        problems.reject(f"{table.name}/{row}", why)
                    continue
                with damaged():
                    rows = rows_of(batch, columns)
                for data, file_path, label, split in rows:
                    row += 1
                    name = f"{table.name}/{row}" + (f"/{file_path}" if file_path and data is not None else "")
                    label = self.label_of(label, file_path, columns, f"{where} row {row}")
                    if split in (None, ""):
                        split = table.split
                    elif not is_split(split):
                        raise UserError(f"{where} row {row}: {brief(split)} is no split name (lower-case, digits, _)")
                    remaining -= ROW + len(data or b"") + utf8_size(label or "") + utf8_size(file_path or "")
                    require(remaining >= 0, too_large)
                    if data:
                        file.write(data)
                        yield Item(name, len(data), label, split, [number, offset])
                        offset += len(data)
                    elif data is not None or not file_path:
                        problems.reject(name, "no image in this row")
                    elif reason := refusal(file_path):
                        problems.reject(without_secrets(file_name(table, file_path)), reason)
                    else:
                        self.may_be_remote = True
                        yield Item(file_name(table, file_path), 0, label, split, [number, file_path])

    def packed(self, number: int) -> Path:
        return self.folder / f"table-{number}.images"

    def label_of(self, value: Any, path: str | None, columns: Columns, where: str) -> str | None:
        if self.labels == "folder":
            return folder_label(path) if path else None
        if columns.classes is not None and type(value) is int:
            if value == -1:  # what `datasets` writes if there is none
                return None
            if not 0 <= value < len(columns.classes):
                raise UserError(f"{where}: the label {value} is none of the table's {len(columns.classes)} classes")
            value = columns.classes[value]
        return None if value in (None, "") else str(value)

    def read(self, item: Item, limit: int) -> bytes:
        number, offset_or_path = item.locator
        if isinstance(offset_or_path, int):
            return storage.read_bytes(self.packed(number), offset_or_path, min(item.size, limit))
        path, uri = offset_or_path, self.tables[number].uri
        if not is_absolute(path) and "/" in uri:
            path = storage.join(uri.rpartition("/")[0] or "/", path)
        return storage.read_bytes(path, 0, limit)


def file_name(table: Table, path: str) -> str:
    """The name in the source of a file at a row's path, which is relative to the folder of the table."""
    folder, slash, _ = table.name.rpartition("/")
    return path if is_absolute(path) else folder + slash + path


def is_absolute(path: str) -> bool:
    """Whether it does not depend on the folder of the table."""
    return path.startswith("/") or "://" in path


def rows_of(batch: Any, columns: Columns) -> list[tuple[bytes | None, str | None, Any, Any]]:
    """(an image's bytes, its path, label, split) of each row of a record batch; a row may have neither of the first."""
    images, labels, splits = (
        batch.column(name).to_pylist() if name is not None else [None] * batch.num_rows
        for name in (columns.image, columns.label, columns.split)
    )
    return [(*image_of(image), label, split) for image, label, split in zip(images, labels, splits, strict=True)]


def image_of(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        path = value.get("path")
        return value.get("bytes"), path if isinstance(path, str) else None
    return (value, None) if isinstance(value, bytes) else (None, value)


def open_tables(uri: str, labels: str, option: str, exclude: str, columns: ColumnNames) -> Tables | None:
    """The tables at `uri`: a file, a range such as x-{000..009}.parquet, or a folder of them; None for anything else.
    Raises ValueError: a table is missing, or pyarrow is."""
    files = expanded(uri) if TABLE_FILE.search(uri) else []
    missing = [file for file in files if not storage.exists(file)]
    if not files or (files == [uri] and (missing if storage.is_remote(uri) else storage.local(uri).is_dir())):
        tables = find_tables(uri, exclude)  # Spark's folders have names such as x.parquet, too
        require(bool(tables or not files), f"{option} {uri}: there is no such file, and no tables are below it")
    else:
        require(not missing, f"{option} {uri}: there is no such file: {missing[0] if missing else ''}")
        tables = tables_of(list(zip(files, relative_names(files), strict=True)))
    if not tables:
        return None
    need_pyarrow(f"{option} {uri}")
    return Tables(uri, tables, labels, option, columns)
