"""Tables as a source: Parquet files. Rows have images, or paths of them.

A row cannot be read without the rows that were compressed with it. So the listing, which reads a table once and in
batches, copies its images one after the other to a plain file, which exists for the time of the run."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import abbreviate, make_printable, remove_secrets
from must.data.sources.files import (
    EXPANDED,
    EXPANSION,
    Item,
    ListingReport,
    count_utf8_bytes,
    explain_path_refusal,
    find_folder_label,
    is_split,
    report_damage,
    resolve_beside,
)

Batches = Callable[[list[str]], Iterator[Any]]  # the columns with these names -> record batches of some rows
USUAL_IMAGES = (
    "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes content data path image_path "
    "img_path file_path filepath file_name filename file uri image_uri url image_url"
)
USUAL_LABELS = "label labels class cls class_name label_name category target"


class Columns(NamedTuple):
    """Names of a table's columns, None for one that it does not have."""

    image: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] | None  # names of the class numbers in the column of labels


def choose(schema: Any, image_column: str, label_column: str, labels: str, where: str) -> Columns:
    """The columns to read of a table with this pyarrow schema. `where`: the option and file, for messages."""
    types = {name: find_storage_type(schema.field(number).type) for number, name in enumerate(schema.names)}
    hint = f"its columns are {make_printable(', '.join(map(str, schema.names)), 300) or 'none'}"
    require(len(set(schema.names)) == len(schema.names), f"{where}: two columns have the same name; {hint}")
    image = find_column(types, image_column, USUAL_IMAGES, may_be_image, f"{where}: --image-column", hint)
    if image is None:
        binary = [name for name, kind in types.items() if has_bytes(kind)]
        require(len(binary) == 1, f"{where}: no column with a known image name; give --image-column; {hint}")
        image = binary[0]
    label = None
    if labels == "csv":
        label = find_column(types, label_column, USUAL_LABELS, may_be_label, f"{where}: --label-column", hint)
        require(label is not None, f"{where}: no column of labels; name it with --label-column; {hint}")
    split = "split" if "split" in types and str(types["split"]) in TEXT else None
    return Columns(image, label, split, read_class_names(schema.metadata, label))


def find_column(
    types: dict[str, Any], name: str, usual: str, is_usable: Callable[[Any], bool], flag: str, hint: str
) -> str | None:
    """The column `name`, or without a name the first one with a usual name; None if there is none."""
    if name:
        require(name in types, f"{flag}: no column {abbreviate(name)}; {hint}")
        require(
            is_usable(types[name]),
            f"{flag}: the column {abbreviate(name)} is of type {make_printable(types[name], 80)}",
        )
        return name
    lower: dict[str, str] = {}
    for column, kind in types.items():
        if is_usable(kind):
            lower.setdefault(column.lower(), column)
    return next((lower[column] for column in usual.split() if column in lower), None)


def find_storage_type(kind: Any) -> Any:
    """The type without dictionaries and extensions: that of the values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return find_storage_type(kind.value_type)
    return find_storage_type(kind.storage_type) if hasattr(kind, "storage_type") else kind


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


def read_class_names(metadata: Any, label: str | None) -> tuple[str, ...] | None:
    """The class names if the column is a ClassLabel by the features that `datasets` writes into a table's metadata."""
    text = (metadata or {}).get(b"huggingface", b"")
    feature = storage.parse_object_or_none(text, lambda content: content["info"]["features"][label])
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


ROW = 1000  # bytes added to each row's size: a file of some kilobytes may have millions of empty rows
PACKED = 10  # a row group may be so many times as large as its file, or have one image of the largest size
ROWS_READ = 32  # rows in memory at the same time; fewer if they may be large
AT_ONCE = 100_000_000  # bytes of these rows

TABLE_FILE = re.compile(r"\.parquet$", re.IGNORECASE)
SPLIT = re.compile(r"(?:.*/)?([a-z][a-z0-9_]{0,49})-\d{5}-of-\d{5}\.parquet", re.DOTALL)  # as files on hubs are named


class Table(NamedTuple):
    """One file. `split`: the split of its rows, None for by hash."""

    uri: str
    name: str  # in its source
    split: str | None = None


def is_table(name: str) -> bool:
    return TABLE_FILE.search(name) is not None


def name_tables(files: Iterable[tuple[str, str]]) -> list[Table]:
    """The tables of these files, (uri, name in the source), with splits if their names have several."""
    tables = [Table(uri, name, match[1] if (match := SPLIT.fullmatch(name)) else None) for uri, name in files]
    splits = {table.split for table in tables}
    return tables if len(splits) > 1 and None not in splits else [table._replace(split=None) for table in tables]


def check_pyarrow(where: str) -> None:
    """Raises ValueError: pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{where}: tables need the package pyarrow ({error}); install it with: pip install 'must-clip[parquet]'"
        ) from None


@contextmanager
def open_parquet(path: Path, where: str, limit: float) -> Iterator[tuple[Any, Batches]]:
    """The schema, and the rows as record batches. Refuses a file with a row group that is so much larger than images of
    `limit` bytes, or than the file itself, that it must not be read."""
    from pyarrow import parquet

    # Streams a column of a row group from the disk; by default it would be read at once.
    with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        # Not the metadata of columns: reading that of a damaged one ends the program (pyarrow 25).
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
        too_large = any(group.total_byte_size > limit * max(1, group.num_rows) for group in groups)
        require(
            not too_large and largest <= max(limit, PACKED * path.stat().st_size),
            f"{where}: it may have images of more than {limit / 1e6:g} MB, unpacked; if these are images, raise "
            "--max-file-mb",
        )
        rows = max(1, min(ROWS_READ, AT_ONCE // max(1, largest)))  # a dictionary's value may be in each row
        yield file.schema_arrow, lambda names: file.iter_batches(rows, columns=names, use_threads=False)


class Tables:
    """One or more tables. Those in a bucket are downloaded while they are listed, one after the other.

    `may_be_remote` is set by the listing if a row has the path of a file."""

    may_be_remote = False

    def __init__(self, uri: str, tables: list[Table], labels: str, option: str, columns: tuple[str, str]) -> None:
        self.uri, self.tables, self.labels, self.option, self.columns = uri, tables, labels, option, columns
        self.folder = Path()
        check_pyarrow(f"{option} {uri}")

    def prepare(self, folder: Path) -> None:
        self.folder = folder

    def items(self, problems: ListingReport) -> Iterator[Item]:
        row = count()
        for number, table in enumerate(self.tables):
            where = f"{self.option} {table.uri}"
            with storage.local_copy(table.uri) as path, report_damage(where, "table"):
                items = self.read_items(number, table, path, where, problems)
                yield from (item._replace(row=next(row)) for item in items)

    def read_items(self, number: int, table: Table, path: Path, where: str, problems: ListingReport) -> Iterator[Item]:
        limit = min(problems.max_bytes, EXPANDED)
        remaining, offset = max(EXPANDED, EXPANSION * path.stat().st_size), 0
        with open_parquet(path, where, limit) as (schema, batches), storage.open_write(self.packed(number)) as file:
            columns = choose(schema, *self.columns, self.labels, where)
            names = [name for name in dict.fromkeys(columns[:3]) if name is not None]
            rows = chain.from_iterable(read_rows(batch, columns) for batch in batches(names))
            for row, (data, file_path, value, split) in enumerate(rows):
                name = f"{table.name}/{row}" + (f"/{file_path}" if file_path and data is not None else "")
                label = self.read_label(value, file_path, columns, f"{where} row {row}")
                require(
                    split in (None, "") or is_split(split),
                    f"{where} row {row}: {abbreviate(split)} is no split name (lower-case, digits, _)",
                )
                split = split or table.split
                remaining -= ROW + len(data or b"") + count_utf8_bytes(label or "") + count_utf8_bytes(file_path or "")
                require(remaining >= 0, f"{where}: its rows are more than {EXPANSION} times as large as itself")
                if data:
                    file.write(data)
                    yield Item(name, len(data), label, split, [number, offset])
                    offset += len(data)
                elif data is not None or not file_path:
                    problems.reject(name, "no image in this row")
                elif reason := explain_path_refusal(file_path):
                    problems.reject(remove_secrets(resolve_beside(table.name, file_path)), reason)
                else:
                    self.may_be_remote = True
                    yield Item(resolve_beside(table.name, file_path), 0, label, split, [number, file_path])

    def files(self, problems: ListingReport) -> Iterator[str]:
        """The tables; and the files whose names are in a table, if it holds no images itself."""
        for table in self.tables:
            yield table.uri
            path, where = storage.local(table.uri), f"{self.option} {table.uri}"
            with report_damage(where, "table"), open_parquet(path, where, problems.max_bytes) as (schema, batches):
                image = choose(schema, *self.columns, self.labels, where).image
                if str(find_storage_type(schema.field(image).type)) in TEXT:
                    names = chain.from_iterable(batch.column(image).to_pylist() for batch in batches([image]))
                    yield from (resolve_beside(table.uri, name) for name in names if name)

    def packed(self, number: int) -> Path:
        return self.folder / f"table-{number}.images"

    def read_label(self, value: Any, path: str | None, columns: Columns, where: str) -> str | None:
        if self.labels == "folder":
            return find_folder_label(path) if path else None
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
        return storage.read_bytes(resolve_beside(self.tables[number].uri, offset_or_path), 0, limit)


def read_rows(batch: Any, columns: Columns) -> Iterator[tuple[bytes | None, str | None, Any, Any]]:
    """(an image's bytes, its path, label, split) of each row of a record batch; a row may have neither of the first."""
    images, labels, splits = (
        batch.column(name).to_pylist() if name is not None else [None] * batch.num_rows
        for name in (columns.image, columns.label, columns.split)
    )
    for image, label, split in zip(images, labels, splits, strict=True):
        data, path = image if isinstance(image, bytes) else None, image if isinstance(image, str) else None
        if isinstance(image, dict):
            data, path = image.get("bytes"), image.get("path")
        yield data, path if isinstance(path, str) else None, label, split
