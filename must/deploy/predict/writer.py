"""Writers of predictions: a table on the terminal, or a CSV or JSON-lines file that is complete or absent."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from must.base import storage
from must.base.text import Rows, cell, printable

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """An image and its K most probable classes, best first."""

    image: str
    classes: list[str]
    probabilities: list[float]
    abstained: bool = False  # the first probability is below the threshold

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.probabilities[0]

    @property
    def top(self) -> list[tuple[str, float]]:
        """(class, probability), best first."""
        return list(zip(self.classes, self.probabilities, strict=True))


@contextmanager
def open_writer(
    output: str, top: int, abstains: bool = False, threshold: float = 0.0
) -> Iterator[Callable[[Prediction], None]]:
    """Yields a function that writes one prediction. `output`: FILE.csv, FILE.jsonl, or '' for the terminal.
    `abstains`: files get a column or key `abstained`. `threshold`: the terminal marks probabilities below it."""
    if not output:
        yield lambda prediction: print_row(prediction, threshold)
        return
    with storage.open_write(output) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        yield csv_writer(text, top, abstains) if output.lower().endswith(".csv") else jsonl_writer(text, abstains)
        text.flush()
        text.detach()


def print_row(prediction: Prediction, threshold: float = 0.0) -> None:
    classes = "  ".join(f"{name} {100 * probability:.1f}%" for name, probability in prediction.top)
    unsure = f"  (below the model's threshold, {100 * threshold:.1f}%)" if prediction.probability < threshold else ""
    logger.info(printable(f"{prediction.image}  {'none of these: ' if prediction.abstained else ''}{classes}{unsure}"))


def csv_writer(text: TextIO, top: int, abstains: bool) -> Callable[[Prediction], None]:
    """Columns: image, class, probability; with top > 1 class_2, probability_2, ...; with a threshold abstained (1, 0),
    where all class columns are empty if it is 1."""
    rows = Rows(text)
    header = ["image"]
    for rank in range(1, top + 1):
        suffix = f"_{rank}" if rank > 1 else ""
        header += [f"class{suffix}", f"probability{suffix}"]
    rows.add(*header, *(["abstained"] if abstains else []))

    def write(prediction: Prediction) -> None:
        row = [cell(prediction.image)]
        for name, probability in prediction.top:
            row += ["" if prediction.abstained else cell(name), f"{probability:.6f}"]
        rows.add(*row, *([int(prediction.abstained)] if abstains else []))

    return write


def jsonl_writer(text: TextIO, abstains: bool) -> Callable[[Prediction], None]:
    """One line per image: {"image": ..., "predictions": [{"class": ..., "probability": ...}, ...]}; with a threshold
    also "abstained": true or false."""

    def write(prediction: Prediction) -> None:
        row: dict[str, Any] = {"image": prediction.image}
        if abstains:
            row["abstained"] = prediction.abstained
        top = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.top]
        row["predictions"] = top
        text.write(json.dumps(row) + "\n")

    return write
