"""A shard's predictions as a Parquet file that is complete or absent, with its run and counts in its metadata."""

import json
from collections import Counter
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import brief, encoded
from must.data.format.index import Shard
from must.data.format.samples import read_samples
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView, Preprocess
from must.deploy.predict.session import Classified
from must.deploy.predict.writer import Options, make_row, rank_classes


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


GROUP_ROWS = 8192  # rows that are kept in memory and then written as a row group
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

    def require_same(self, stored: Any, where: str) -> None:
        """Raises ValueError: `stored`, the fields of a Run, differ; the message names the field."""
        for name, value in asdict(self).items():
            stored_value = stored.get(name) if isinstance(stored, dict) else None
            require(
                stored_value == value and type(stored_value) is type(value),
                f"{where} is of another run: its {name} is {brief(stored_value)}, here it is {brief(value)}; "
                "choose another --output, or delete the predictions there",
            )


def file_name(shard: Shard) -> str:
    return f"predictions-{shard.name.removesuffix('.tar')}.parquet"


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes the rows of one shard, in its order, to an open file.

    Columns: key, source, class and probability (class_2, probability_2, ... with a larger top_k), margin (the first
    probability less the second), similarity (to the images that the model remembers, or null), abstained (with a
    threshold), reason (why the image could not be read, else null).
    """

    def __init__(self, file: Any, classes: list[str], run: Run) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.classes, self.run = [utf8(name) for name in classes], run
        self.options = Options(min(run.top_k, len(classes)), run.abstain)
        fields = [("key", pa.string()), ("source", pa.string())]
        for suffix in ("", *(f"_{rank}" for rank in range(2, self.options.top_k + 1))):
            fields += [(f"class{suffix}", pa.string()), (f"probability{suffix}", pa.float32())]
        fields += [("margin", pa.float32()), ("similarity", pa.float32())]
        fields += [("abstained", pa.bool_())] if run.abstain else []
        self.schema = pa.schema([*fields, ("reason", pa.string())])
        self.writer = pq.ParquetWriter(file, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []  # also with columns that the schema leaves out
        self.counts: Counter[str] = Counter()
        self.written = self.unreadable = self.abstained = 0

    def __exit__(self, *_: object) -> None:
        if self.writer.is_open:  # an error ended the shard; pyarrow would close it later, in the closed file
            with suppress(OSError, ValueError):
                self.writer.close()

    def add(self, decoded: list[Decoded], classified: Classified | None) -> None:
        """Adds a batch of samples; `classified`: those that have pixels, in their order; None: none has."""
        answers = iter(zip(*classified, strict=True) if classified else ())
        for item in decoded:
            row: dict[str, Any] = {"key": utf8(item.key), "source": utf8(item.source), "abstained": False}
            if item.pixels is None:
                row["reason"] = utf8(item.reason)
                self.unreadable += 1
            else:
                probability, similarity = next(answers)
                prediction = rank_classes("", probability, similarity, self.classes, self.options)
                best = np.sort(probability)
                row |= make_row(prediction) | {"margin": best[-1] - (best[-2] if len(best) > 1 else 0)}
                self.abstained += prediction.abstained
                self.counts.update([prediction.name] if prediction.name is not None else [])
            self.rows.append(row)
        if len(self.rows) >= GROUP_ROWS:
            self.write_group()

    def write_group(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.written += len(self.rows)
        self.rows.clear()

    def close(self, shard: Shard) -> dict[str, Any]:
        """Writes the rest and the metadata; returns their content."""
        self.write_group()
        stats = {
            "run": asdict(self.run),
            "shard": shard.name,
            "shard_sha256": shard.sha256,
            "rows": self.written,
            "unreadable": self.unreadable,
            "abstained": self.abstained,
            "classes": {name: self.counts[name] for name in self.classes if self.counts[name]},
        }
        self.writer.add_key_value_metadata({STATS_KEY: json.dumps(stats).encode()})
        self.writer.close()
        return stats


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
        valid = all(type(number) is int and number >= 0 for number in numbers) and sum(numbers) == stats["rows"]
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
