"""What all sources of images share (items, reports of a listing, labels from folders), and the sources of single files:
folders, bucket prefixes and manifests. Listings are streamed; the workers read the images."""

import csv
import errno
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, takewhile
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from must.base import storage
from must.base.errors import MustError, UserError
from must.base.parameters import require
from must.base.text import NONE_OF_THESE, abbreviate, compose, make_one_line, make_printable
from must.data.image.limits import can_read_heic

PHONES = frozenset({"heic", "heif"})
EXTENSIONS = (PHONES if can_read_heic() else frozenset()) | frozenset(
    "jpg jpeg jpe jfif mpo png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpx avif ico tga".split()  # noqa: SIM905
)
MOST_KINDS = 10  # of other files, named in a line
ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz)$", re.IGNORECASE)


def describe_unread(kinds: Mapping[str, int]) -> str:
    """The numbers of files of other kinds, and a hint for HEIC files."""
    most = sorted(Counter(kinds).most_common(MOST_KINDS))
    listed = ", ".join(f"{count} {make_printable(kind)}" for kind, count in most)
    listed += f" and {len(kinds) - MOST_KINDS:,} other kinds" if len(kinds) > MOST_KINDS else ""
    phones = {f".{ending}" for ending in PHONES} & kinds.keys()
    hint = "; an iPhone's HEIC is read where pillow-heif is installed: pip install pillow-heif" if phones else ""
    return listed + hint


def describe_no_images(skipped: Mapping[str, int]) -> str:
    """The message for a folder without images."""
    others = f", known endings are .jpg, .png, .webp and the like; only other files: {describe_unread(skipped)}"
    return f"no images in there{others if skipped else ''}"


class Item(NamedTuple):
    """One file that should be an image. It is stored as a JSON list, so its fields are plain values."""

    name: str  # unique in its source; with "/" between folders
    size: int  # bytes; 0 if the listing does not have it
    label: str | None
    split: str | None  # if the source has splits
    locator: Any  # what the source needs to read it
    row: int | None = None  # its place in a list or a table


def hash_name(name: str) -> int:
    """64 bits, by which the images of a source are divided among the parts of a work, and are put into an order."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())


class UnreadableError(Exception):
    """One image cannot be read from its source, for this reason; others may be readable."""


LONGEST_NAME = 4096
"""Bytes of a name or a label; an item with a longer one is rejected."""

EXPANSION, EXPANDED = 100, 1_000_000_000
"""The images and labels of an archive or a table may be so many times as large as its file, or 1 GB."""


class ListingReport:
    """Files of a listing that are not images. `max_bytes`: of an image, beyond which a table's rows are not read."""

    def __init__(self, reject: Callable[[str, str], None], max_bytes: float = inf) -> None:
        self.write, self.max_bytes = reject, max_bytes
        self.skipped: Counter[str] = Counter()  # number of files that are not images, by extension
        self.unread_labels = 0  # of a manifest

    def accepts(self, name: str) -> bool:
        """Whether it may be an image, by its name; other files are counted."""
        kind = find_kind(name)
        if kind is not None:
            self.skipped[kind] += 1
        return kind is None

    def reject(self, name: str, reason: str) -> None:
        """Reports a file with a reason; a long name is shortened."""
        self.write(name if len(name) <= LONGEST_NAME else name[:200] + "...", reason)

    def without_long_texts(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of a source, with labels in composed characters; those whose names or labels are too long are
        rejected."""
        for item in items:
            if count_utf8_bytes(item.name) > LONGEST_NAME:
                self.reject(item.name, f"a name of more than {LONGEST_NAME} bytes")
            elif item.label is not None and count_utf8_bytes(item.label) > LONGEST_NAME:
                self.reject(item.name, f"a label of more than {LONGEST_NAME} bytes")
            else:
                yield item if item.label is None else item._replace(label=compose(item.label))


def count_utf8_bytes(text: str) -> int:
    """Bytes of a name or label in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


class Source(Protocol):
    uri: str
    may_be_remote: bool  # reads wait for a network, so several should run at the same time

    def prepare(self, folder: Path) -> None:
        """Called once, first; `folder` is local and exists for the time of the run."""
        return

    def items(self, problems: ListingReport) -> Iterator[Item]:
        """All images, in any order. Their names and labels may be of any length."""

    def files(self, problems: ListingReport) -> Iterator[str]:
        """The paths of the files that hold the images. Without `prepare`; of a source on this machine."""

    def read(self, item: Item, limit: int) -> bytes:
        """An image's bytes, at most `limit` of them.
        Raises UnreadableError, OSError: this image cannot be read; it is rejected; ValueError: the source as a whole
        cannot be read, for example because of missing credentials."""


@contextmanager
def report_damage(where: str, kind: str) -> Iterator[None]:
    """Converts any error of a reader's package to "WHERE: the KIND is damaged"; `where` is an option and a file."""
    try:
        yield
    except MustError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the disk; for damage there is no errno, or EINVAL for an impossible offset
        raise UserError(f"{where}: the {kind} is damaged: {make_one_line(error)[:200]}") from None


def find_kind(name: str) -> str | None:
    """None for a name that may be an image's: a known extension, or none. Otherwise the extension, or "hidden" for a
    file or a folder whose name begins with a dot: a bin, thumbnails."""
    *folders, base = name.split("/")
    if base.startswith(".") or any(part.startswith(".") and part not in (".", "..") for part in folders):
        return "hidden"
    _, dot, extension = base.rpartition(".")
    return None if not dot or extension.lower() in EXTENSIONS else f".{extension.lower()[:12]}"


def find_folder_label(name: str) -> str | None:
    """The name of the image's folder; None for the root."""
    return name.rpartition("/")[0].rpartition("/")[2] or None


def make_relative_names(files: list[str]) -> list[str]:
    """The files' paths relative to the deepest folder that has all of them."""
    split = [file.split("/") for file in files]
    folders = zip(*(parts[:-1] for parts in split), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(parts[common:]) for parts in split]


def find_relative_folder(root: str, folder: str) -> str:
    """`folder` relative to `root`, with a "/" after it; "" if it is not below `root`."""
    if not folder or storage.is_remote(root) != storage.is_remote(folder):
        return ""
    root, folder = normalize_folder(root), normalize_folder(folder)
    return folder[len(root) :] if folder.startswith(root) and folder != root else ""


def normalize_folder(uri: str) -> str:
    """The normalized path of a folder, with a "/" at its end."""
    return (uri if storage.is_remote(uri) else str(storage.local(uri).resolve())).rstrip("/") + "/"


def is_within(uri: str, folder: str) -> bool:
    """Whether `uri` is the folder or inside it."""
    return storage.is_remote(folder) == storage.is_remote(uri) and normalize_folder(uri).startswith(
        normalize_folder(folder)
    )


LONGEST_ROW = 1_000_000  # bytes of a line of a manifest
OTHER_COLUMNS = {"image": "path", "class": "label"}  # as in the tables that `must` writes


class Folder(Source):
    """Image files below a folder or a gs:// prefix, without those in the folder `exclude` and the names `others`."""

    def __init__(self, uri: str, labels: str, exclude: str = "", others: Collection[str] = ()) -> None:
        self.uri, self.labels, self.others = uri, labels, others
        self.may_be_remote = storage.is_remote(uri)
        self.exclude = find_relative_folder(uri, exclude)

    def entries(self, problems: ListingReport) -> Iterator[storage.Entry]:
        for entry in storage.list_files(self.uri, problems.reject):
            if (self.exclude and (entry.name + "/").startswith(self.exclude)) or entry.name in self.others:
                continue
            if problems.accepts(entry.name):
                yield entry

    def items(self, problems: ListingReport) -> Iterator[Item]:
        for entry in self.entries(problems):
            label = find_folder_label(entry.name) if self.labels == "folder" else None
            yield Item(entry.name, entry.size, label, None, 0)

    def files(self, problems: ListingReport) -> Iterator[str]:
        return (storage.join(self.uri, item.name) for item in self.items(problems))

    def read(self, item: Item, limit: int) -> bytes:
        return storage.read_bytes(storage.join(self.uri, item.name), 0, limit)


class Manifest(Source):
    """A .csv, .tsv or .jsonl file with the columns path (or image), and optionally label (or class) and split.

    Columns are separated by what the first line has most of: commas, semicolons or tabs.
    Paths are absolute, gs:// URIs, or relative to the manifest."""

    def __init__(self, uri: str, labels: str, option: str) -> None:
        self.uri, self.labels, self.option = uri, labels, option
        self.may_be_remote = True  # its lines may have any path

    def items(self, problems: ListingReport) -> Iterator[Item]:
        file = self.uri.rpartition("/")[2]
        for line, row in self.rows():
            if problem := find_problem(row):
                path = row.get("path") if isinstance(row, dict) else None
                problems.reject(f"{file} line {line}" + (f": {abbreviate(path)[1:-1]}" if path else ""), problem)
                continue
            path, label, split = row["path"], row.get("label"), row.get("split")
            if self.labels == "folder":
                label = find_folder_label(path)
            elif self.labels == "none":
                problems.unread_labels += label not in (None, "")
                label = None
            yield Item(path, 0, str(label) if label not in (None, "") else None, split or None, 0, line)

    def files(self, problems: ListingReport) -> Iterator[str]:
        return (resolve_beside(self.uri, item.name) for item in self.items(problems))

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line number, columns), as a stream. The columns are None for a line that is no JSON object."""
        where, ending = f"{self.option} {self.uri}", self.uri.lower().rpartition(".")[2]
        with storage.local_copy(self.uri) as path, path.open("rb") as file:
            lines = read_lines(file, where)
            if ending not in ("csv", "tsv"):
                yield from (
                    (n, storage.parse_object_or_none(line, dict)) for n, line in enumerate(lines, 1) if line.strip()
                )
                return
            first = next(lines, "")
            delimiter = max("\t,;" if ending == "tsv" else ",;\t", key=first.count)
            table = csv.DictReader(chain([first], lines), delimiter=delimiter)
            try:
                of_must = "class" in (table.fieldnames or ())
                table.fieldnames = [OTHER_COLUMNS.get(name, name) for name in table.fieldnames or ()]
                require(
                    "path" in table.fieldnames,
                    f"{where}: the first line must name the columns path[,label][,split], not: "
                    f"{abbreviate(delimiter.join(table.fieldnames))}",
                )
                for row in table:
                    if of_must and row["label"] == NONE_OF_THESE:
                        row["label"] = ""
                    yield table.line_num, row
            except csv.Error as error:
                raise UserError(f"{where}: cannot be read after line {table.line_num}: {error}") from None

    def read(self, item: Item, limit: int) -> bytes:
        return storage.read_bytes(resolve_beside(self.uri, item.name), 0, limit)


def read_lines(file: BinaryIO, where: str) -> Iterator[str]:
    """The lines as text. One that is too long is refused: parsed, it would take many times its size."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW + 1), b""), 1):
        require(len(line) <= LONGEST_ROW, f"{where}: line {number} is longer than {LONGEST_ROW} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: line {number} cannot be read: {error}") from None


def find_problem(row: Any) -> str:
    """Why a line of a manifest is rejected, "" if it is not."""
    if not isinstance(row, dict):
        return "not a JSON object"
    path, label, split = row.get("path"), row.get("label"), row.get("split")
    if not isinstance(path, str) or not path:
        return "no 'path'; the columns are path[,label][,split]"
    if reason := explain_path_refusal(path):
        return reason
    if split not in (None, "") and not is_split(split):
        return "not a split name (lower-case, digits, _)"
    if not (label is None or isinstance(label, str | int | float)):
        return "the label is not text"
    return ""


def explain_path_refusal(path: str) -> str:
    """Why there can be no file at that path, "" if there can. Surrogates may stand for bytes that are not UTF-8."""
    try:
        is_name = b"\0" not in path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        return "no name that a file can have"
    try:
        storage.is_remote(path)
    except ValueError:
        return "only local paths and gs://, s3:// and az:// are read"
    return ""


def resolve_beside(uri: str, path: str) -> str:
    """A path in the list or table at `uri`, which is absolute or relative to its folder."""
    folder, slash, _ = uri.rpartition("/")
    return path if path.startswith("/") or "://" in path else folder + slash + path


def is_split(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.islower() and len(name) <= 50  # a part of file names
