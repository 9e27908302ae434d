"""Writers of predictions: a table on the terminal, or a CSV or JSON-lines file that is complete or absent."""

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from must.base import storage
from must.base.errors import UserError
from must.base.text import cell, format_csv, printable

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """An image and its K most probable classes, best first."""

    image: str
    classes: list[str]
    probabilities: list[float]
    abstained: bool = False  # the first probability is below the threshold, or none of the classes is more probable
    similarity: float | None = None  # to the images that the model remembers, 0 to 1; None: it has no memory

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


class Options(NamedTuple):
    """Parameters of `classify`. `abstain`: the model abstains where the top probability is below this, and always where
    none of the classes is more probable."""

    top_k: int
    abstain: float
    batch_size: int = 32


def rank_classes(
    name: str, probability: np.ndarray, similarity: float, classes: list[str], options: Options
) -> Prediction:
    """The prediction of an image's probabilities [K]; what they lack of 1 is that of none of the classes."""
    best = np.argsort(-probability, kind="stable")[: options.top_k]
    top = [classes[i] for i in best], [float(probability[i]) for i in best]
    first, none = probability[best[0]], 1 - probability.sum()
    abstained = bool(first < options.abstain or none > first)
    return Prediction(name, *top, abstained, None if np.isnan(similarity) else float(similarity))


def make_row(prediction: Prediction) -> dict[str, Any]:
    """The columns of tables: image; class, probability, then class_2, probability_2, ..., where all classes are None if
    the model abstained; abstained; similarity, None if the model has no memory."""
    row: dict[str, Any] = {"image": prediction.image}
    for rank, (name, probability) in enumerate(prediction.top, 1):
        suffix = f"_{rank}" if rank > 1 else ""
        row |= {f"class{suffix}": None if prediction.abstained else name, f"probability{suffix}": probability}
    return row | {"abstained": prediction.abstained, "similarity": prediction.similarity}


@contextmanager
def open_writer(output: str) -> Iterator[Callable[[Prediction], None]]:
    """Yields a function that writes one prediction. `output`: '' for the terminal; FILE.csv, which has the columns of
    `make_row`, a cell empty for None, and 1 or 0 for a truth value; or FILE.jsonl, a line per image."""
    if not output:
        yield print_row
        return
    with storage.open_write(output) as file:
        header = list[str]()

        def write_csv(prediction: Prediction) -> None:
            row = make_row(prediction)
            if not header:
                header.extend(row)
                file.write(format_csv([header]))
            cells = [format_cell(value, 4 if name == "similarity" else 6) for name, value in row.items()]
            file.write(format_csv([cells]))

        def write_json(prediction: Prediction) -> None:
            file.write(json.dumps({"image": prediction.image, **make_json(prediction)}).encode() + b"\n")

        yield write_csv if output.lower().endswith(".csv") else write_json


def print_row(prediction: Prediction) -> None:
    classes = "  ".join(f"{name} {100 * probability:.1f}%" for name, probability in prediction.top)
    logger.info(printable(f"{prediction.image}  {'none of these: ' if prediction.abstained else ''}{classes}"))


def format_cell(value: str | float | None, decimals: int) -> str:
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return cell(value) if isinstance(value, str) else "" if value is None else str(int(value))


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
