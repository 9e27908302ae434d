"""A shard's predictions as a Parquet file that is complete or absent, with its run and counts in its metadata."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief, encoded
from must.data.format.index import Shard, count
from must.data.format.samples import read_samples
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView, Preprocess
from must.deploy.predict.session import EMBEDDING


class Decoded(NamedTuple):
    """A sample and its image as the model's input (uint8 [S, S, 3]), or None and the reason why it is unreadable."""

    key: str
    source: str
    pixels: np.ndarray | None
    reason: str


def decode_rows(path: Path, rows: np.ndarray, preprocess: Preprocess, max_pixels: int) -> list[Decoded]:
    """The samples at `rows` of the table of offsets. The same decoder and view as for single images."""
    view, decoded = EvalView(preprocess), []
    for key, source, image in read_samples(path, rows):
        try:
            decoded.append(Decoded(key, source, decode_view(image, view, max_pixels), ""))
        except UserError as error:
            decoded.append(Decoded(key, source, None, str(error)))
    return decoded


GROUP_ROWS = 8192  # of a row group
PACKED_ROWS = 1024  # rows that are combined to one table in memory; the writer also works on as many at a time
TAIL = 1 << 16  # bytes of a file's end that are read first: they contain the metadata
STATS_KEY = b"must"  # the name in the file's metadata


@dataclass(frozen=True)
class Run:
    """The parameters that are equal for all files of an output."""

    model_sha256: str
    index_sha256: str
    split: str  # "": all
    top_k: int
    abstain: float
    embeddings: bool = False  # the default is for files of earlier versions

    def require_same(self, stored: Any, where: str) -> None:
        """Raises ValueError: `stored`, the fields of a Run, differ; the message names the field."""
        for name, value in asdict(self).items():
            default = getattr(Run, name, None)
            stored_value = stored.get(name, default) if isinstance(stored, dict) else None
            require(
                stored_value == value and type(stored_value) is type(value),
                f"{where} is of another run: its {name} is {brief(stored_value)}, here it is {brief(value)}; "
                "choose another --output, or delete the predictions there",
            )


def file_name(shard: Shard) -> str:
    return f"predictions-{shard.name.removesuffix('.tar')}.parquet"


class Table:
    """The rows of one shard, in its order. They stay in memory until `write`, as the file's schema has their counts.

    Columns: key, source, class and probability (class_2, probability_2, ... with a larger top_k), margin (the first
    probability less the second), abstained (with a threshold), reason (why the image could not be read, else null),
    embedding (half floats [D], if the run has them).
    """

    def __init__(self, classes: list[str], run: Run) -> None:
        import pyarrow as pa

        self.classes, self.run, self.top = [utf8(name) for name in classes], run, min(run.top_k, len(classes))
        self.names = pa.array(self.classes, pa.string())
        fields = [("key", pa.string()), ("source", pa.string())]
        for rank in range(1, self.top + 1):
            suffix = f"_{rank}" if rank > 1 else ""
            fields += [(f"class{suffix}", pa.string()), (f"probability{suffix}", pa.float32())]
        fields += [("margin", pa.float32()), *([("abstained", pa.bool_())] if run.abstain else [])]
        fields.append(("reason", pa.string()))
        if run.embeddings:
            fields.append((EMBEDDING, pa.list_(pa.float16())))
        self.schema = pa.schema(fields)
        self.waiting: list[Any] = []  # batches, some with few rows
        self.packed: list[Any] = []  # tables of PACKED_ROWS, which have little overhead
        self.counts = np.zeros(len(classes), np.int64)
        self.rows = self.unreadable = self.abstained = 0

    def add(self, decoded: list[Decoded], probability: np.ndarray, embedding: np.ndarray | None = None) -> None:
        """Adds a batch of samples; `probability`, float32 [n, K], and `embedding`, [n, D], are of those that have
        pixels, in their order."""
        import pyarrow as pa

        readable = np.array([item.pixels is not None for item in decoded], bool)
        ranked = np.argsort(-probability, axis=1, kind="stable")
        sorted_ = np.take_along_axis(probability, ranked, axis=1)
        unsure = sorted_[:, 0] < self.run.abstain
        margin = sorted_[:, 0] - (sorted_[:, 1] if sorted_.shape[1] > 1 else 0)

        def spread(values: np.ndarray, kind: Any, missing: np.ndarray = ~readable) -> Any:
            """Values of the readable images as a column of all rows; null where `missing`."""
            column = np.zeros(len(decoded), values.dtype)
            column[readable] = values
            return pa.array(column, kind, mask=missing)

        unnamed = ~readable
        unnamed[readable] = unsure
        columns = [pa.array([utf8(item.key) for item in decoded]), pa.array([utf8(item.source) for item in decoded])]
        for rank in range(self.top):
            columns.append(self.names.take(spread(ranked[:, rank], pa.int64(), unnamed)))
            columns.append(spread(sorted_[:, rank], pa.float32()))
        columns.append(spread(margin, pa.float32()))
        if self.run.abstain:
            columns.append(pa.array(unnamed & readable))
        columns.append(pa.array([utf8(item.reason) or None for item in decoded], pa.string()))
        if embedding is not None:
            columns.append(embedding_column(embedding, readable))
        self.waiting.append(pa.record_batch(columns, schema=self.schema))
        self.counts += np.bincount(ranked[~unsure, 0], minlength=len(self.counts))
        self.rows += len(decoded)
        self.unreadable += int((~readable).sum())
        self.abstained += int(unsure.sum())
        if sum(batch.num_rows for batch in self.waiting) >= PACKED_ROWS:
            self.pack()

    def pack(self) -> None:
        import pyarrow as pa

        self.packed.append(pa.Table.from_batches(self.waiting, self.schema).combine_chunks())
        self.waiting.clear()

    def write(self, uri: str, shard: Shard) -> dict[str, Any]:
        """Writes the file; returns the content of its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        stats = {
            "run": asdict(self.run),
            "shard": shard.name,
            "shard_sha256": shard.sha256,
            "rows": self.rows,
            "unreadable": self.unreadable,
            "abstained": self.abstained,
            "classes": {name: int(n) for name, n in zip(self.classes, self.counts, strict=True) if n},
        }
        schema = self.schema.with_metadata({STATS_KEY: json.dumps(stats).encode()})
        self.pack()
        table = pa.concat_tables(self.packed).cast(schema)
        with storage.open_write(uri) as file:
            pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="zstd", **self.encoding())
        return stats

    def encoding(self) -> dict[str, Any]:
        """Disables dictionaries and statistics for embeddings, where they are of no use."""
        names = [name for name in self.schema.names if name != EMBEDDING]
        return {"use_dictionary": names, "write_statistics": names} if EMBEDDING in self.schema.names else {}


def embedding_column(embedding: np.ndarray, readable: np.ndarray) -> Any:
    """Float32 [n, D] of the `readable` images, bool [N], as a column of half floats; null for the others.

    Not Arrow's list of a fixed size: pyarrow 23 and before cannot write or read one with nulls in Parquet files, where
    the two kinds of lists differ only in metadata.
    """
    import pyarrow as pa

    ends = np.cumsum(readable * embedding.shape[1], dtype=np.int64)
    numbers = pa.array(embedding.astype(np.float16).ravel())
    return pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), numbers, mask=pa.array(~readable))


def read_stats(uri: str, size: int, shard: Shard, run: Run) -> dict[str, Any]:
    """The metadata of a file of `size` bytes; reads only its end.
    Raises ValueError: it is not of `must predict --shards` or damaged, of another run or of another shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = storage.read_bytes(uri, max(0, size - TAIL))
    footer = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < footer <= size:
        end = storage.read_bytes(uri, size - footer)
    try:
        stats = json.loads(pq.read_metadata(pa.BufferReader(end[-footer:])).metadata[STATS_KEY])
        stored_run, stored_shard = stats["run"], (stats["shard"], stats["shard_sha256"], stats["rows"])
        numbers = [stats["unreadable"], stats["abstained"], *stats["classes"].values()]
        valid = sum(count(number, "a count") for number in numbers) == count(stats["rows"], "rows")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException):
        valid = False
    require(valid, f"{uri} is damaged, or no file of `must predict --shards`; delete it and run the same command again")
    run.require_same(stored_run, uri)
    require(
        stored_shard == (shard.name, shard.sha256, shard.samples),
        f"{uri} is of another shard than {shard.name}; choose another --output, or delete the predictions there",
    )
    return stats


def utf8(name: str) -> str:
    """The name with characters that UTF-8 cannot represent replaced."""
    return encoded(name).decode()
