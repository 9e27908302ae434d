"""How predictions are shown: a table on the terminal, or a CSV or JSON-lines file that is complete or absent."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from must import storage
from must.text import Rows, cell, printable


class Prediction(NamedTuple):
    """An image and its K most probable classes, best first."""

    image: str
    classes: list[str]
    probabilities: list[float]


@contextmanager
def open_writer(output: str, top: int) -> Iterator[Callable[[Prediction], None]]:
    """A function that takes one prediction after the other. `output`: FILE.csv, FILE.jsonl, or '' for the terminal."""
    if not output:
        yield print_row
        return
    with storage.open_write(output) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        yield csv_writer(text, top) if output.lower().endswith(".csv") else jsonl_writer(text)
        text.flush()
        text.detach()


def print_row(prediction: Prediction) -> None:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    found = "  ".join(f"{name} {100 * probability:.1f}%" for name, probability in pairs)
    print(printable(f"{prediction.image}  {found}"))


def csv_writer(text: TextIO, top: int) -> Callable[[Prediction], None]:
    """Columns: image, class, probability, and for more than one class class_2, probability_2, ..."""
    rows = Rows(text)
    header = ["image"]
    for rank in range(1, top + 1):
        suffix = f"_{rank}" if rank > 1 else ""
        header += [f"class{suffix}", f"probability{suffix}"]
    rows.add(*header)

    def write(prediction: Prediction) -> None:
        row = [cell(prediction.image)]
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            row += [cell(name), f"{probability:.6f}"]
        rows.add(*row)

    return write


def jsonl_writer(text: TextIO) -> Callable[[Prediction], None]:
    """A line an image: {"image": ..., "predictions": [{"class": ..., "probability": ...}, ...]}"""

    def write(prediction: Prediction) -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        found = [{"class": name, "probability": round(probability, 6)} for name, probability in pairs]
        text.write(json.dumps({"image": prediction.image, "predictions": found}) + "\n")

    return write
