"""Writes and reads predictions: lines on the terminal, or a CSV, JSONL or Parquet file that is complete or absent."""

import csv
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.text import NONE_OF_THESE, encode_utf8, escape_cell, format_csv, make_printable, unescape_cell
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
    then), probability_2, ...; abstained; similarity, None if the model has no memory."""
    row: Row = {"image": prediction.image}
    for rank, (name, probability) in enumerate(prediction.top, 1):
        suffix, none = (f"_{rank}", None) if rank > 1 else ("", NONE_OF_THESE)
        row |= {f"class{suffix}": none if prediction.abstained else name, f"probability{suffix}": probability}
    return row | {"abstained": prediction.abstained, "similarity": prediction.similarity}


def list_columns(output: str, top_k: int, more: Sequence[str] = ()) -> list[str]:
    """The columns of a table for the K most probable classes; those of a JSON-lines file are `make_json`'s."""
    if output.lower().endswith(".jsonl"):
        return ["image", "class", "abstained", "similarity", "predictions", *more]
    suffixes = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    return [
        "image",
        *(kind + end for end in suffixes for kind in ("class", "probability")),
        "abstained",
        "similarity",
        *more,
    ]


@contextmanager
def open_table(output: str, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """Yields a function that writes a row: of FILE.csv, with an empty cell for None and 1 or 0 for a truth value; of
    FILE.jsonl, a line; of FILE.parquet, in row groups."""
    ending = output.lower().rpartition(".")[2]
    if ending == "parquet":
        check_pyarrow(f"--output {output}")
    with storage.open_write(output) as file:
        if ending == "parquet":
            with open_parquet(file, columns) as write:
                yield write
            return
        if ending == "csv":
            file.write(format_csv([columns]))

        def write_line(row: Row) -> None:
            if ending == "csv":
                file.write(format_csv([[format_cell(row.get(name), name) for name in columns]]))
            else:
                file.write(json.dumps(row).encode() + b"\n")

        yield write_line


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
                for row in csv.DictReader(text):
                    yield {name: unescape_cell(value) for name, value in row.items()}
        else:
            with path.open("rb") as lines:
                yield from map(json.loads, lines)


def make_cells(output: str, prediction: Prediction) -> Row:
    """A row of the file `output`."""
    row = make_row(prediction)
    if output.lower().endswith(".jsonl"):
        row = make_json(prediction) | {"class": row["class"]}
    return {"image": prediction.image, **row} | (
        {} if prediction.embedding is None else {"embedding": prediction.embedding}
    )


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


def make_json(prediction: Prediction) -> dict[str, Any]:
    """As a JSON object: class (None if the model abstained), abstained, similarity if the model has a memory, and
    predictions: [{"class": ..., "probability": ...}, ...]."""
    row: dict[str, Any] = {"class": prediction.name, "abstained": prediction.abstained}
    row |= {} if prediction.similarity is None else {"similarity": round(prediction.similarity, 4)}
    return row | {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in prediction.top]}
