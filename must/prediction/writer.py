"""Writes and reads predictions: lines on the terminal, or a CSV, JSONL or Parquet file that is complete or absent."""

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.text import NONE_OF_THESE, encode_utf8, escape_cell, format_csv, make_printable, parse_csv
from must.data.sources.files import report_damage
from must.data.sources.tables import check_pyarrow

logger = logging.getLogger(__name__)

FORMATS = (".csv", ".jsonl", ".parquet")
ROWS = 10_000  # of a row group of a Parquet file, which are in memory together
Row = dict[str, Any]


class Prediction(NamedTuple):
    """An image and its K most probable classes, best first."""

    image: str
    classes: list[str]
    probabilities: list[float]
    abstained: bool = False  # the first probability is below the threshold, or none of the classes is more probable
    similarity: float | None = None  # to the images that the model remembers, 0 to 1; None: it has no memory
    embedding: np.ndarray | None = None  # float32 [D], if it was asked for

    @property
    def name(self) -> str | None:
        """The most probable class; None if the model abstained."""
        return None if self.abstained else self.classes[0]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.probabilities[0]

    @property
    def top(self) -> list[tuple[str, float]]:
        """(class, probability), best first."""
        return list(zip(self.classes, self.probabilities, strict=True))


class Unreadable(NamedTuple):
    image: str
    reason: str


class Options(NamedTuple):
    """Parameters of `classify`. `abstain`: the model abstains where the top probability is below this, and always where
    none of the classes is more probable."""

    top_k: int
    abstain: float
    batch_size: int = 32


def rank_classes(
    name: str,
    probability: np.ndarray,
    similarity: float,
    classes: list[str],
    options: Options,
    embedding: np.ndarray | None = None,
) -> Prediction:
    """The prediction of an image's probabilities [K]; what they lack of 1 is that of none of the classes."""
    best = np.argsort(-probability, kind="stable")[: options.top_k]
    top = [classes[i] for i in best], [float(probability[i]) for i in best]
    first, none = probability[best[0]], 1 - probability.sum()
    abstained = bool(first < options.abstain or none > first)
    return Prediction(name, *top, abstained, None if np.isnan(similarity) else float(similarity), embedding)


def make_row(prediction: Prediction) -> Row:
    """The columns of tables: image; class ("none of these" if the model abstained), probability, then class_2 (None
    then), probability_2, ...; abstained; similarity, None if the model has no memory; and the embedding, if there is
    one."""
    row: Row = {"image": prediction.image}
    for rank, (name, probability) in enumerate(prediction.top, 1):
        suffix, none = (f"_{rank}", None) if rank > 1 else ("", NONE_OF_THESE)
        row |= {f"class{suffix}": none if prediction.abstained else name, f"probability{suffix}": probability}
    row |= {"abstained": prediction.abstained, "similarity": prediction.similarity}
    return row if prediction.embedding is None else row | {"embedding": prediction.embedding}


def list_columns(top_k: int, more: Sequence[str] = ()) -> list[str]:
    """The columns of a table for the K most probable classes, as of `make_row`."""
    return [*make_row(Prediction("", [""] * top_k, [0.0] * top_k)), *more]


@contextmanager
def open_table(output: str, columns: Sequence[str]) -> Iterator[Callable[[Row], object]]:
    """Yields a function that writes a row: of FILE.csv, with an empty cell for None and 1 or 0 for a truth value; of
    FILE.jsonl, a line; of FILE.parquet, in row groups."""
    ending = output.lower().rpartition(".")[2]
    if ending == "parquet":
        check_pyarrow(f"--output {output}")
    with storage.open_write(output) as file:
        if ending == "parquet":
            with open_parquet(file, columns) as write:
                yield write
        elif ending == "csv":
            file.write(format_csv([columns]))
            yield lambda row: file.write(format_csv([[format_cell(row.get(name), name) for name in columns]]))
        else:
            yield lambda row: file.write(json.dumps({name: row.get(name) for name in columns}).encode() + b"\n")


@contextmanager
def open_parquet(file: Any, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    import pyarrow
    from pyarrow import parquet

    kinds = {"probability": pyarrow.float32(), "similarity": pyarrow.float32(), "abstained": pyarrow.bool_()}
    kinds["embedding"] = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema([(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in columns])
    rows = list[Row]()
    with parquet.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(
                {name: encode_utf8(value).decode() if isinstance(value, str) else value for name, value in row.items()}
            )
            if len(rows) == ROWS:
                flush()

        yield write
        if rows:
            flush()


def read_table(uri: str) -> Iterator[Row]:
    """The rows of a table that `open_table` has written, as a stream; the cells of a CSV file are texts."""
    with storage.local_copy(uri) as path, report_damage(uri, "table"):
        if uri.lower().endswith(".parquet"):
            check_pyarrow(uri)
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS // 10):
                    yield from batch.to_pylist()
        elif uri.lower().endswith(".csv"):
            with path.open(encoding="utf-8", newline="") as text:
                yield from parse_csv(text)
        else:
            with path.open("rb") as lines:
                yield from map(json.loads, lines)


def print_row(prediction: Prediction) -> None:
    classes = "  ".join(f"{name} {100 * probability:.1f}%" for name, probability in prediction.top)
    logger.info(make_printable(f"{prediction.image}  {'none of these: ' if prediction.abstained else ''}{classes}"))


def format_cell(value: str | float | None, column: str) -> str:
    if isinstance(value, float):
        return f"{value:.{4 if column == 'similarity' else 6}f}"
    return escape_cell(value) if isinstance(value, str) else "" if value is None else str(int(value))


def to_frame(predictions: Sequence[Prediction]) -> Any:
    """A pandas DataFrame with the columns of the CSV file; None where that has an empty cell.
    Raises UserError: pandas is not installed."""
    return import_pandas().DataFrame([make_row(prediction) for prediction in predictions])


def import_pandas() -> Any:
    """Raises UserError: it is not installed."""
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise UserError("to_frame needs the package pandas: pip install pandas") from None
