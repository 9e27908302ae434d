"""Names from outside as text: on a terminal, in a file, in a cell of a table, in a message.

Class names, file names and reasons come from strangers' folders, archives, buckets and models. Python holds a byte that
is no UTF-8 as a lone surrogate, which no encoder takes.
"""

import csv
import difflib
import io
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last: full width
BRIEF_LENGTH = 80  # characters of a value in a message
SCHEME = string.ascii_letters + string.digits + "+.-"
CLOSING = ",;:.)]}'`"  # what a sentence puts behind an address
NONE_OF_THESE = "none of these"  # what a person may choose in place of a class, and a folder or cell that says so
BUCKET_SCHEMES = ("gs", "s3", "az", "abfs", "abfss")  # an object's name may hold a "?"
SETTING = re.compile(  # in a connection string, or a query that stands alone
    r"(?i)\b(sig|signature|accountkey|sharedaccesssignature|access_token|password|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token))=[^\s&;,'\"]+"
)


def without_secrets(text: str) -> str:
    """`text`, in which the URIs and settings are those that people may see: without name and password
    (``s3://***@bucket``), without the query of a signed address (``https://host/a.png?***``), without a key's value.

    What is no secret stays: the container before an abfss:// account, a "?" in the name of an object.
    """
    if "://" in text:
        first, *rest = text.split("://")
        scheme, shown = tail_of(first, SCHEME), [first]
        for number, part in enumerate(rest, 1):
            end = min((at for mark in ' \n\t<>"' if (at := part.find(mark)) >= 0), default=len(part))
            place, after = part[:end], part[end:]
            following = tail_of(place, SCHEME) if not after and number < len(rest) else ""  # the next one's scheme
            place = place.removesuffix(following)
            closing = tail_of(place, CLOSING)
            shown.append(public(scheme.lower(), place.removesuffix(closing)) + closing + following + after)
            scheme = tail_of(part, SCHEME)
        text = "://".join(shown)
    return SETTING.sub(r"\1=***", text)


def public(scheme: str, place: str) -> str:
    """What follows "SCHEME://", without secrets."""
    bucket = scheme in BUCKET_SCHEMES
    place, mark, query = place.partition("?")
    if not bucket:
        place = place.partition("#")[0]
    authority, slash, path = place.partition("/")
    name, at, host = authority.rpartition("@")
    if at and not (scheme in ("abfs", "abfss") and ":" not in name):
        authority = f"***@{host}"
    elif not at and "@" in path and ":" in authority and not authority.rpartition(":")[2].isdigit():
        authority, slash, path = f"***@{path.rpartition('@')[2]}", "", ""  # a "/" in the password
    signed = mark and ("=" in query if bucket else True)
    return authority + slash + path + ("?***" if signed else mark + query)


def tail_of(text: str, characters: str) -> str:
    return text[len(text.rstrip(characters)) :]


def printable(text: object, limit: int = 0) -> str:
    """One line that cannot steer a terminal, and has no secrets: "?" for control characters, those that turn the
    direction of writing, and bytes that are no UTF-8. At most `limit` characters, if that is not 0."""
    line = "".join(character if character.isprintable() else "?" for character in without_secrets(str(text)))
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


def one_line(error: object) -> str:
    """What it says, without line breaks; the name of its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def printable_page(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def encoded(text: str) -> bytes:
    r"""UTF-8. A byte that is no UTF-8 is written as ``\udcXX``, which in JSON is the very escape that stands for it."""
    return text.encode("utf-8", "backslashreplace")


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def counted(number: int, noun: str) -> str:
    """1 answer, 1,200 answers."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    r"""The same without characters that steer a terminal which shows the file: ESC is written as ``\x1b``."""
    return text.translate(CONTROLS)


def lines_of(names: Sequence[str]) -> bytes:
    """A text file with a name a line."""
    return encoded("".join(visible(" ".join(name.split())) + "\n" for name in names))


def uncell(text: str) -> str:
    """A name out of a file of `cell`s."""
    return text.removeprefix("'")


def cell(text: str) -> str:
    """A name in a CSV file, which a spreadsheet must not take for a formula, and which cannot steer a terminal.

    An apostrophe is put before one that starts like a formula, or with an apostrophe: a reader that takes one leading
    apostrophe away has the name again, but for control characters, which are written out.
    """
    return visible(f"'{text}" if text.startswith((*FORMULA, "'")) else text)


def csv_of(rows: Iterable[Iterable[object]]) -> bytes:
    """A whole CSV file of `Rows`."""
    text = io.StringIO()
    Rows(text).writer.writerows(rows)
    return encoded(text.getvalue())


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
    if isinstance(value, int) and value.bit_length() > 4 * BRIEF_LENGTH:
        return f"a number of {value.bit_length()} bits"
    return f"'{printable(str(value)[: 100 * BRIEF_LENGTH], BRIEF_LENGTH)}'"


def close_to(name: str, known: Sequence[str], count: int = 1, synonyms: Mapping[str, str] | None = None) -> list[str]:
    """What was meant, perhaps: the known names that are most like it, or whose synonyms are."""
    others = {other: one for other, one in (synonyms or {}).items() if one in known and other not in known}
    near = difflib.get_close_matches(name[:BRIEF_LENGTH], [*known, *others], n=count)
    return list(dict.fromkeys(others.get(one, one) for one in near))


def did_you_mean(name: str, known: Sequence[str], synonyms: Mapping[str, str] | None = None) -> str:
    """The end of a message about an unknown name: the one that was meant, or all that there are."""
    near = close_to(name, known, synonyms=synonyms)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
