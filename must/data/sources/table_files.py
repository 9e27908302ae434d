"""Finds tables, and reads them in batches by pyarrow: Parquet, and Arrow files and streams (as `datasets` saves)."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from must.base import storage
from must.base.errors import UserError
from must.data.sources.base import ARCHIVE, EXTENSIONS, kind_of

TABLE_FILE = re.compile(r"\.(parquet|arrow)$", re.IGNORECASE)
# A split is in a file's name, as on hubs, or is the folder of a file data-00000-of-00002.arrow, as `datasets` saves.
SPLIT = re.compile(r"(?:.*/)?(?!data-)([a-z][a-z0-9_]{0,49})(?:/data)?-\d{5}-of-\d{5}\.(?:parquet|arrow)", re.DOTALL)
CACHE = re.compile(r"(?:.*/)?cache-[^/]*\.arrow", re.DOTALL)  # results of `datasets`, which it writes beside its files
ROWS_READ = 32  # rows in memory at the same time; fewer if they may be large
AT_ONCE = 100_000_000  # bytes of these rows
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a complete stream


class Table(NamedTuple):
    """One file. `split`: the split of its rows, None for by hash."""

    uri: str
    name: str  # in its source
    split: str | None = None


PACKED = 10
"""A row group larger than an image may be is read only if it is at most this many times as large as its file."""


class Reader(NamedTuple):
    """A table's schema, and its rows as record batches of at most ROWS_READ: `batches(columns, limit)`.

    For rows that may have an image of more than `limit` bytes it yields their number instead; they are not read.
    `largest`: bytes of the largest row group by the Parquet file's metadata, so no value is larger. `rows`: also by it.
    """

    schema: Any
    batches: Callable[[list[str], float], Iterator[Any]]
    largest: int = 0
    rows: int = 0


def find_tables(uri: str, exclude: str) -> list[Table]:
    """The tables below a folder or prefix; none if there are images or archives, too."""
    names = []
    for entry in storage.list_files(uri):
        if (exclude and entry.name.startswith(exclude)) or kind_of(entry.name) == "hidden":
            continue
        if ARCHIVE.search(entry.name) or entry.name.lower().rpartition(".")[2] in EXTENSIONS:
            return []
        if TABLE_FILE.search(entry.name) and not CACHE.fullmatch(entry.name):
            names.append(entry.name)
    return tables_of([(storage.join(uri, name), name) for name in sorted(names)])


def tables_of(files: list[tuple[str, str]]) -> list[Table]:
    """The tables of these files, (uri, name in the source), with splits if their names have several."""
    splits = [match[1] if (match := SPLIT.fullmatch(name)) else None for _, name in files]
    several = len(set(splits)) > 1 and None not in splits
    return [Table(uri, name, split if several else None) for (uri, name), split in zip(files, splits, strict=True)]


def need_pyarrow(where: str) -> None:
    """Raises ValueError: pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{where}: tables need the package pyarrow ({error}); install it with: pip install 'must-clip[parquet]'"
        ) from None


@contextmanager
def open_table(path: Path, kind: str) -> Iterator[Reader]:
    """A local table of that kind, "parquet" or "arrow". Raises any error of pyarrow for a damaged one."""
    import pyarrow
    from pyarrow import ipc, parquet

    with ExitStack() as stack:
        if kind == "parquet":
            # Streams a column of a row group from the disk; by default it would be read at once.
            file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            stack.callback(file.close)
            # Not the metadata of columns: reading that of a damaged one ends the program (pyarrow 25).
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            largest = max((group.total_byte_size for group in groups), default=0)
            rows = max(1, min(ROWS_READ, AT_ONCE // max(1, largest)))  # a dictionary's value may be in each row

            def batches_of_groups(names: list[str], limit: float) -> Iterator[Any]:
                def may_be_read(number: int) -> bool:
                    size, count = groups[number].total_byte_size, groups[number].num_rows
                    return size <= limit * max(1, count) and size <= max(limit, PACKED * path.stat().st_size)

                for readable, numbers in groupby(range(len(groups)), may_be_read):
                    if readable:
                        yield from file.iter_batches(rows, list(numbers), names, use_threads=False)
                    else:
                        yield from (groups[number].num_rows for number in numbers)

            yield Reader(file.schema_arrow, batches_of_groups, largest, file.metadata.num_rows)
            return
        source = stack.enter_context(pyarrow.memory_map(str(path)))
        if source.read(6) == b"ARROW1":
            table = ipc.open_file(source)
            batches: Iterator[Any] = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            source.seek(max(0, source.size() - len(END)))
            if source.read() != END:
                raise UserError("its end is missing")
            source.seek(0)
            table = batches = ipc.open_stream(source)
        yield Reader(table.schema, lambda names, limit: small_batches(batches, names))


def small_batches(batches: Iterator[Any], names: list[str]) -> Iterator[Any]:
    for batch in batches:
        chosen = batch.select(names)
        chosen.validate(full=True)  # otherwise its offsets would be used unchecked
        for start in range(0, chosen.num_rows, ROWS_READ):
            yield chosen.slice(start, ROWS_READ)
