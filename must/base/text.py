"""Makes external text safe for a terminal, a file, a table cell or a message.

Class names, file names and reasons come from external folders, archives, buckets and models. Python represents a byte
that is no UTF-8 as a lone surrogate, which no encoder accepts."""

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: full width
BRIEF_LENGTH = 80  # characters of a value in a message
FEW_NAMES = 12  # known names in a message
URI_BEGIN = re.compile(r"(?<![a-zA-Z0-9+.-])([a-zA-Z0-9+.-]*)://")  # of a URI
CLOSING = ",;:.)]}'`"  # punctuation that may follow a URI in a sentence
NONE_OF_THESE = "none of these"  # a person's answer in place of a class; also the name of a folder and of a cell
BUCKET_SCHEMES = ("gs", "s3", "az", "abfs", "abfss")  # an object's name may hold a "?"
SETTING = re.compile(  # in a connection string, or in a query without its URI
    r"(?i)\b(sig|signature|accountkey|sharedaccesssignature|access_token|password|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token))=[^\s&;,'\"]+"
)


def remove_secrets(text: str) -> str:
    """Removes secrets from the URIs and settings in `text`: name and password (``s3://***@bucket``), the query of a
    signed URL (``https://host/a.png?***``), and the values of keys.

    The container before an abfss:// account, and a "?" in the name of an object, are no secrets and stay."""
    first, *parts = URI_BEGIN.split(text)
    shown = [first]
    for scheme, part in zip(parts[::2], parts[1::2], strict=True):
        address = re.split(r'[ \n\t<>"]', part, maxsplit=1)[0].rstrip(CLOSING)
        shown.append(f"{scheme}://{hide_credentials(scheme.lower(), address)}{part[len(address) :]}")
    return SETTING.sub(r"\1=***", "".join(shown))


def hide_credentials(scheme: str, text: str) -> str:
    """Removes secrets from `text`, the part of a URI after "SCHEME://"."""
    bucket = scheme in BUCKET_SCHEMES
    text, mark, query = text.partition("?")
    if not bucket:
        text = text.partition("#")[0]
    authority, slash, path = text.partition("/")
    name, at, host = authority.rpartition("@")
    if at and not (scheme in ("abfs", "abfss") and ":" not in name):
        authority = f"***@{host}"
    elif not at and "@" in path and ":" in authority and not authority.rpartition(":")[2].isdigit():
        authority, slash, path = f"***@{path.rpartition('@')[2]}", "", ""  # the password contains a "/"
    signed = mark and ("=" in query if bucket else True)
    return authority + slash + path + ("?***" if signed else mark + query)


def make_printable(text: object, limit: int = 0) -> str:
    """One line without secrets and without terminal control sequences: "?" replaces control characters, characters that
    change the direction of writing, and bytes that are no UTF-8. At most `limit` characters, if that is not 0."""
    line = "".join(character if character.isprintable() else "?" for character in remove_secrets(str(text)))
    return line if not limit or len(line) <= limit else line[: limit - 1] + "…"


def compose(name: str) -> str:
    """A name with composed characters (NFC): macOS writes é in the names of files as e and an accent."""
    return unicodedata.normalize("NFC", name)


def remove_invisible(name: str) -> str:
    """The name without characters that only format the others, such as a space of no width."""
    return "".join(character for character in name if unicodedata.category(character) != "Cf")


def make_one_line(error: object) -> str:
    """The error's message without line breaks; the name of its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def make_page_printable(text: str) -> str:
    """`make_printable` for a text of several lines."""
    return "\n".join(make_printable(line) for line in text.split("\n"))


def encode_utf8(text: str) -> bytes:
    r"""Encodes as UTF-8. A byte that is no UTF-8 becomes ``\udcXX``, which is also its escape in JSON."""
    return text.encode("utf-8", "backslashreplace")


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def pluralize(number: int, noun: str) -> str:
    """1 answer, 1,200 answers."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def escape_controls(text: str) -> str:
    r"""Writes out control characters, which could control a terminal that shows the file: ESC becomes ``\x1b``."""
    return text.translate(CONTROLS)


def join_lines(names: Sequence[str]) -> bytes:
    """A text file with one name per line."""
    return encode_utf8("".join(escape_controls(" ".join(name.split())) + "\n" for name in names))


def format_duration(seconds: float) -> str:
    """90 seconds, 5.0 minutes, 3.2 hours, 2.5 days."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def unescape_cell(text: str) -> str:
    """The name in a cell that `escape_cell` wrote."""
    return text.removeprefix("'")


def escape_cell(text: str) -> str:
    """A name as a cell of a CSV file that no spreadsheet reads as a formula, without control characters.

    Names that start like a formula, or with an apostrophe, get an apostrophe in front. A reader that removes a leading
    apostrophe has the name again, except that control characters are written out."""
    return escape_controls(f"'{text}" if text.startswith((*FORMULA, "'")) else text)


def format_csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows of a CSV file: commas, quotation marks where they are needed, a line feed after each row. External text must
    be passed through `escape_cell` first.

    If rows end with a line feed, Python's own writer does not quote a carriage return, which readers take for the end
    of a row."""
    file: Any = SimpleNamespace(write=lambda row: row.removesuffix("\r\n") + "\n")  # which `writerow` returns
    return encode_utf8("".join(map(csv.writer(file).writerow, rows)))


def read_back(name: str) -> str:
    """A name as it is read from a table: control characters and bytes that are not UTF-8 are written out."""
    return unescape_cell(encode_utf8(escape_cell(name)).decode())


def parse_csv(table: bytes | Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a table that `format_csv` wrote, by column; all cells are texts, names as of `unescape_cell`.
    `table`: its bytes, or its lines. Raises ValueError, csv.Error, AttributeError: it is no such table."""
    for row in csv.DictReader(io.StringIO(table.decode(), newline="") if isinstance(table, bytes) else table):
        yield {name: unescape_cell(value) for name, value in row.items()}


def abbreviate(value: Any) -> str:
    """A value of any size, shortened for a message: text in quotation marks, or its type and size."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * BRIEF_LENGTH:
        return f"a number of {value.bit_length()} bits"
    return f"'{make_printable(str(value)[: 100 * BRIEF_LENGTH], BRIEF_LENGTH)}'"


def close_to(name: str, known: Sequence[str], count: int = 1) -> list[str]:
    """The known names that are most similar to `name`."""
    return difflib.get_close_matches(name[:BRIEF_LENGTH], known, n=count)


def suggest_name(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: a similar known name; or else all of them, or the first few."""
    if near := close_to(name, known):
        return f"did you mean '{near[0]}'?"
    more = f" and {len(known) - FEW_NAMES} more" if len(known) > FEW_NAMES else ""
    return f"known: {', '.join(known[:FEW_NAMES])}{more}"
