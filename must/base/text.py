"""Names from outside as text: on a terminal, in a file, in a cell of a table, in a message.

Class names, file names and reasons come from strangers' folders, archives, buckets and models. Python holds a byte that
is no UTF-8 as a lone surrogate, which no encoder takes.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from typing import Any, Protocol

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last: full width
SHORT = 80  # characters of a value in a message


def printable(text: object, limit: int = 0) -> str:
    """One line that cannot steer a terminal: "?" for control characters, those that turn the direction of writing,
    and bytes that are no UTF-8. At most `limit` characters, if that is not 0."""
    line = "".join(character if character.isprintable() else "?" for character in str(text))
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


def printable_page(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def encoded(text: str) -> bytes:
    r"""UTF-8. A byte that is no UTF-8 is written as ``\udcXX``, which in JSON is the very escape that stands for it."""
    return text.encode("utf-8", "backslashreplace")


def cell(text: str) -> str:
    """A name in a CSV file, which a spreadsheet must not take for a formula.

    An apostrophe is put before one that starts like a formula, or with an apostrophe: a reader that takes one leading
    apostrophe away has the name again.
    """
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


class TextFile(Protocol):
    def write(self, text: str, /) -> object: ...


class Rows:
    """A CSV file to write: commas, quotation marks where they are needed, a line feed after each row.

    Python's own writer leaves a carriage return without quotation marks when rows end with a line feed, and readers
    take it for the end of a row.
    """

    def __init__(self, file: TextFile) -> None:
        self.file, self.writer = file, csv.writer(self, lineterminator="\r\n")

    def add(self, *cells: object) -> None:
        """Text that comes from outside goes through `cell` first."""
        self.writer.writerow(cells)

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n") + "\n")


def brief(value: Any) -> str:
    """A value for a message, whatever its size: short text in quotation marks, or what kind of thing it is."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * SHORT:
        return f"a number of {value.bit_length()} bits"
    return f"'{printable(str(value)[: SHORT + 1], SHORT)}'"


def close_to(name: str, known: Sequence[str], count: int = 1) -> list[str]:
    """What was meant, perhaps: the known names that are most like it."""
    return difflib.get_close_matches(name[:SHORT], known, n=count)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all that there are."""
    near = close_to(name, known)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
