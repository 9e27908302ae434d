"""What every source of images has: an item a file, a listing's problems, labels from folders."""

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from must.base import storage
from must.base.errors import UserError
from must.base.text import one_line, printable
from must.data.image.headers.heif import can_read

PHONES = frozenset({"heic", "heif"})
EXTENSIONS = (PHONES if can_read() else frozenset()) | frozenset(
    "jpg jpeg jpe jfif mpo png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpx avif ico tga".split()  # noqa: SIM905
)
MOST_KINDS = 10  # of other files, in a line
ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz)$", re.IGNORECASE)


def not_read(kinds: Mapping[str, int]) -> str:
    """The numbers of files of other kinds, and what would read those of telephones."""
    most = sorted(Counter(kinds).most_common(MOST_KINDS))
    listed = ", ".join(f"{count} {printable(kind)}" for kind, count in most)
    listed += f" and {len(kinds) - MOST_KINDS:,} other kinds" if len(kinds) > MOST_KINDS else ""
    phones = {f".{ending}" for ending in PHONES} & kinds.keys()
    hint = "; an iPhone's HEIC is read where pillow-heif is installed: pip install pillow-heif" if phones else ""
    return listed + hint


def no_images(skipped: Mapping[str, int]) -> str:
    """Why nothing came of a folder."""
    others = f", known endings are .jpg, .png, .webp and the like; only other files: {not_read(skipped)}"
    return f"no images in there{others if skipped else ''}"


class Item(NamedTuple):
    """One file that should be an image. It goes through files as a JSON list, so its fields are plain values."""

    name: str  # unique in its source; with "/" between folders
    size: int  # bytes, 0 when the listing does not say
    label: str | None
    split: str | None  # where the source itself says so
    locator: Any  # what the source needs to find it again


class UnreadableError(Exception):
    """One image cannot be had from its source, for the reason given; the others may be whole."""


LONGEST_NAME = 4096
"""Bytes of a name or a label, whatever it comes in; what is longer is a rejected item."""

EXPANSION, EXPANDED = 100, 1_000_000_000
"""What an archive or a table becomes, images and labels, may be so many times its size, or 1 GB."""


class ListingReport:
    """What a listing found besides images. Rows of more than `max_bytes` are rejected before they are read."""

    def __init__(self, reject: Callable[[str, str], None], max_bytes: float = inf) -> None:
        self.write, self.max_bytes = reject, max_bytes
        self.skipped: Counter[str] = Counter()  # files that are no images, by extension

    def takes(self, name: str) -> bool:
        """Whether it may be an image, by its name; what is none is counted."""
        kind = kind_of(name)
        if kind is not None:
            self.skipped[kind] += 1
        return kind is None

    def reject(self, name: str, reason: str) -> None:
        """Goes to rejected.jsonl; of a long name its beginning."""
        self.write(name if len(name) <= LONGEST_NAME else name[:200] + "...", reason)


def utf8_size(text: str) -> int:
    """Bytes of a name or label as it is written."""
    return len(text.encode("utf-8", "surrogatepass"))


Listing = Callable[[Any, ListingReport], Iterator[Item]]


def of_bounded_texts(items: Listing) -> Listing:
    """The method `items` of a source without those whose names or labels are too long, which are rejected."""

    @wraps(items)
    def bounded(self: Any, problems: ListingReport) -> Iterator[Item]:
        for item in items(self, problems):
            if utf8_size(item.name) > LONGEST_NAME:
                problems.reject(item.name, f"a name of more than {LONGEST_NAME} bytes")
            elif item.label is not None and utf8_size(item.label) > LONGEST_NAME:
                problems.reject(item.name, f"a label of more than {LONGEST_NAME} bytes")
            else:
                yield item

    return bounded


class Source(Protocol):
    uri: str
    may_be_remote: bool  # reading waits for a network, so that several reads should be on their way at once

    def prepare(self, folder: Path) -> None:
        """Called once before anything else; `folder` is local and lasts as long as the run."""
        return

    def items(self, problems: ListingReport) -> Iterator[Item]:
        """All images, in any order."""

    def read(self, item: Item, limit: int) -> bytes:
        """An image's bytes, at most `limit` of them.

        Raises:
            UnreadableError, OSError: this one cannot be read; it is set aside.
            ValueError: the source as a whole cannot be read, for want of credentials for instance.
        """


@contextmanager
def damage_named(where: str, what: str) -> Iterator[None]:
    """Says at `where`, an option and file, what is damaged, whatever its reader raises: libraries raise anything."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk; damage has no number, or is a place that cannot be
        if isinstance(error, ValueError) and isinstance(error.__cause__, OSError):
            raise  # a full disk
        raise UserError(f"{where}: the {what} is damaged: {one_line(error)[:200]}") from None


def kind_of(name: str) -> str | None:
    """None for what may be an image: a known extension, or none at all. Else what it is skipped as."""
    base = name.rpartition("/")[2]
    if base.startswith("."):
        return "hidden"
    _, dot, extension = base.rpartition(".")
    return None if not dot or extension.lower() in EXTENSIONS else f".{extension.lower()[:12]}"


def folder_label(name: str) -> str | None:
    """The name of the folder the image is in; None directly in the root."""
    return name.rpartition("/")[0].rpartition("/")[2] or None


def told_apart(files: list[str]) -> list[str]:
    """Each file's path below the folder that all of them are in."""
    split = [file.split("/") for file in files]
    folders = zip(*(parts[:-1] for parts in split), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(parts[common:]) for parts in split]


def below(root: str, folder: str) -> str:
    """`folder` relative to `root` with a "/" after it, or "" if it is elsewhere."""
    if not folder or storage.is_remote(root) != storage.is_remote(folder):
        return ""
    root, folder = normal(root), normal(folder)
    return folder[len(root) :] if folder.startswith(root) and folder != root else ""


def normal(uri: str) -> str:
    """One spelling of a folder, with a "/" at its end."""
    return (uri if storage.is_remote(uri) else str(storage.local(uri).resolve())).rstrip("/") + "/"


def is_within(place: str, folder: str) -> bool:
    """Whether `place` is the folder or inside it."""
    return bool(below(folder, place)) or (
        storage.is_remote(folder) == storage.is_remote(place) and normal(folder) == normal(place)
    )
