"""Images in tar and zip archives and in WebDataset shards, which are read without unpacking them.

So a member's name is never used as a path. Python's tarfile has two problems: it allocates as much memory as a header
demands, and it stops silently at a header that it cannot read (`Headers`, `require_end`)."""

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from must.base import storage
from must.base.parameters import require
from must.base.text import abbreviate, make_one_line
from must.data.sources.files import (
    EXPANDED,
    EXPANSION,
    LONGEST_NAME,
    Item,
    ListingReport,
    Source,
    UnreadableError,
    count_utf8_bytes,
    find_folder_label,
    report_damage,
)

COMPRESSED: dict[str, Any] = {"gz": gzip.open, "tgz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
MOST_FILES = 100_000  # that a pattern with braces may match
RANGE = re.compile(r"\{(-?[0-9]{1,20})\.\.(-?[0-9]{1,20})")  # braceexpand keeps a whole range in memory
HEADER = struct.Struct("<26x2H")  # of a zip's member, with the lengths of its name and extra field
LABEL_MEMBERS = ("cls", "json")  # members of a WebDataset sample that may have its label


class Archives:
    """One or more archives. Those in a bucket are downloaded, and compressed tars are decompressed, to the folder that
    `prepare` gets and for the time of the run, so that a member can be read without the members before it.
    `names`: the archives' names in the source, if given, which are put before those of their members; `beside`: the
    folder of the archives, whose other files may be images."""

    may_be_remote = False

    def __init__(
        self,
        uri: str,
        files: list[str],
        labels: str,
        option: str,
        names: Sequence[str] = (),
        beside: Source | None = None,
    ) -> None:
        self.uri, self.labels, self.option = uri, labels, option
        self.archives, self.names, self.beside = files, names, beside
        self.paths = list(files)  # of local copies, not compressed

    def prepare(self, folder: Path) -> None:
        for number, file in enumerate(self.archives):
            path, kind = storage.local(file), file.lower().rpartition(".")[2]
            if storage.is_remote(file):
                path = folder / f"archive-{number}.{kind}"
                storage.download(file, path)
            if kind in COMPRESSED:
                tar = folder / f"archive-{number}.tar"
                with (
                    report_damage(f"{self.option} {file}", "archive"),
                    COMPRESSED[kind](path, "rb") as packed,
                    storage.open_write(tar) as out,
                ):
                    expand(packed, out, max(EXPANDED, EXPANSION * path.stat().st_size))
                path = tar
            self.paths[number] = str(path)

    def items(self, problems: ListingReport) -> Iterator[Item]:
        for number, (file, path) in enumerate(zip(self.archives, self.paths, strict=True)):
            members = list_zip_members if path.lower().endswith(".zip") else list_tar_members
            prefix = self.names[number] + "/" if self.names else ""
            with report_damage(f"{self.option} {file}", "archive"):
                for name, size, locator, label in members(path, problems):
                    if not problems.accepts(name):
                        continue
                    if size:
                        chosen = {"folder": find_folder_label(name), "csv": label}.get(self.labels)
                        yield Item(prefix + name, size, chosen, None, [number, *locator])
                    else:
                        problems.reject(prefix + name, "empty file")
        if self.beside:
            yield from self.beside.items(problems)

    def files(self, problems: ListingReport) -> Iterator[str]:
        yield from self.archives
        if self.beside:
            yield from self.beside.files(problems)

    def read(self, item: Item, limit: int) -> bytes:
        if self.beside and not item.locator:
            return self.beside.read(item, limit)
        number, start, size, *packed = item.locator
        if packed:
            return read_zip_member(self.paths[number], item, limit)
        return storage.read_bytes(self.paths[number], start, size)


def list_existing_files(uri: str, option: str) -> list[str]:
    """The file at `uri`, or the files of a range."""
    files = expand_range(uri)
    for file in files:
        require(storage.exists(file), f"{option} {uri}: there is no such file: {file}")
        require(storage.is_remote(file) or storage.local(file).is_file(), f"{option} {uri}: not a file: {file}")
    return files


def expand_range(uri: str) -> list[str]:
    """x-{000..002}.tar -> x-000.tar, x-001.tar, x-002.tar, as in bash and WebDataset; several braces are combined.

    Unbalanced braces and backslashes are ordinary characters."""
    long = any(abs(int(last) - int(first)) > MOST_FILES for first, last in RANGE.findall(uri))
    try:
        files = [] if long else list(islice(braceexpand(uri, escape=False), MOST_FILES + 1))
    except ValueError:
        return [uri]
    require(not long and len(files) <= MOST_FILES, f"{abbreviate(uri)}: matches over {MOST_FILES} files")
    return files


def list_tar_members(path: str, problems: ListingReport) -> Iterator[tuple[str, int, tuple[int, int], str | None]]:
    """(name, size, (offset, size), label) of the images. Consecutive members of one key are one WebDataset sample."""
    key: str | None = None
    images: list[tuple[str, int, tuple[int, int]]] = []
    label: str | None = None
    with Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := file.next(tar)) is not None:
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
            if member.size < 0:  # some versions of tarfile would loop forever
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            if not member.isreg() or member.issparse():
                problems.reject(name, "a link, device or sparse file inside an archive")
                continue
            if count_utf8_bytes(name) > LONGEST_NAME:  # not kept until the sample's end
                problems.reject(name, f"a name of more than {LONGEST_NAME} bytes")
                continue
            base, extension = split_key(name)
            if base != key:
                yield from ((*image, label) for image in images)
                key, images, label = base, [], None
            if extension in LABEL_MEMBERS:
                content = tar.extractfile(member)
                label = read_label(extension, content.read(1 << 20) if content else b"") or label
            else:
                images.append((name, member.size, (member.offset_data, member.size)))
        require_end(file, tar.offset)
        yield from ((*image, label) for image in images)


def expand(packed: Any, out: BinaryIO, limit: int) -> None:
    while data := packed.read(1 << 20):
        limit -= len(data)
        if limit < 0:
            raise tarfile.ReadError(
                f"it expands to more than {EXPANSION} times its size; if it is as it should be, give it unpacked"
            )
        out.write(data)


def split_key(name: str) -> tuple[str, str]:
    """A sample's key and a member's extension as WebDataset splits them: at the first dot of the base name.

    The key of a name without a dot, which WebDataset skips, is the whole name: it may be an image. The function of the
    package webdataset is not used, because importing it imports torch."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_label(extension: str, data: bytes) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if extension == "cls":
        return text or None
    label = storage.parse_object_or_none(text, lambda content: content.get("label"))
    return str(label) if isinstance(label, str | int | float) and label != "" else None


def list_zip_members(path: str, problems: ListingReport) -> Iterator[tuple[str, int, tuple[int, int, int, int], None]]:
    """(name, size, (offset of the local header, packed size, method, checksum), no label). Python keeps a zip's
    directory in memory: about 500 bytes per member while listing.
    Raises BadZipFile: their total size is more than allowed."""
    end, remaining = 0, max(EXPANDED, EXPANSION * storage.local(path).stat().st_size)
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
            if member.filename and member.is_dir():
                continue
            if not member.filename:
                problems.reject("", "a member without a name")
            elif member.flag_bits & 1:
                problems.reject(member.filename, "encrypted in the archive")
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                problems.reject(member.filename, f"compressed by method {member.compress_type}, which is not supported")
            elif member.header_offset < end:
                problems.reject(member.filename, "shares its bytes in the archive with another member")
            else:
                end = member.header_offset + HEADER.size + member.compress_size
                remaining -= member.file_size
                if remaining < 0:
                    raise zipfile.BadZipFile(f"its members are more than {EXPANSION} times its size")
                locator = (member.header_offset, member.compress_size, member.compress_type, member.CRC)
                yield member.filename, member.file_size, locator, None


def read_zip_member(path: str, item: Item, limit: int) -> bytes:
    """At most `limit` bytes of a zip's member, whatever the directory says. The lengths of its name and extra field are
    those in its local header. Raises UnreadableError: it is damaged."""
    _, start, *packed = item.locator
    member = zipfile.ZipInfo(item.name)
    member.compress_size, member.compress_type, member.CRC = packed
    member.file_size = item.size
    with storage.local(path).open("rb") as file:
        try:
            file.seek(start)
            file.seek(sum(HEADER.unpack(file.read(HEADER.size))), os.SEEK_CUR)
            return zipfile.ZipExtFile(file, "r", member).read(min(limit, item.size))
        except zipfile.BadZipFile:
            raise UnreadableError("damaged in the archive: wrong checksum") from None
        except (zlib.error, struct.error, EOFError, ValueError) as error:
            raise UnreadableError(f"damaged in the archive: {make_one_line(error)}") from None


LARGEST_HEADERS = {b"L": 1 << 20, b"K": 1 << 20, b"x": 1 << 16, b"g": 1 << 16, b"X": 1 << 16}
"""Limit of the bytes that follow a header of that kind: a name, the name of a link, attributes."""

GLOBAL = 1 << 16  # bytes of global attributes (they apply to all later members): tarfile copies them for each member
BLOCKS = 64  # blocks of the headers of one member, which include those before it and the lists of a sparse file
LARGEST_READ = 1 << 20  # bytes of any other read, such as a label
ATTRIBUTES = (b"x", b"g", b"X")
MANY_DIGITS = re.compile(rb"[0-9]{200}")  # in attributes: older versions of tarfile parse them in quadratic time
NEGATIVE = re.compile(rb"(?:^|\n)[0-9]+ size=\s*-")  # newer versions of tarfile stop silently at it


def require_end(file: BinaryIO, offset: int) -> None:
    """Raises ReadError: tarfile stopped reading at `offset`, but the archive does not end there: a damaged header, a
    truncated file, or several concatenated archives, of which tarfile reads only the first."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError(f"a damaged header, or cut off, at byte {offset}")
    while following := file.read(1 << 20):
        if any(following):
            raise tarfile.ReadError(f"data after its end at byte {offset}; join archives with `tar -A`")


class Headers(io.FileIO):
    """A tar file with limits for each read: tarfile itself reads as many bytes as a header demands."""

    kind = b""  # the type byte of the last block; when more than a block is read, that block was a header
    blocks = 0  # blocks read for the current member
    attributes = 0  # bytes of global attributes so far

    def next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """`tar.next()`, where `tar` reads this file."""
        self.blocks = 0
        return tar.next()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADERS.get(self.kind, LARGEST_READ) + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a header of impossible size")
        data = super().read(size)
        self.attributes += len(data) if self.kind == b"g" else 0
        self.blocks += size == tarfile.BLOCKSIZE
        if self.attributes > GLOBAL:
            raise tarfile.ReadError(f"attributes of all members of more than {GLOBAL} bytes")
        if self.blocks > BLOCKS:
            raise tarfile.ReadError(f"a member with more than {BLOCKS} headers, or a sparse file")
        if self.kind in ATTRIBUTES:
            if MANY_DIGITS.search(data):
                raise tarfile.ReadError("a header with a number of 200 digits")
            if NEGATIVE.search(data):
                raise tarfile.ReadError("a header with a negative size")
        if size == tarfile.BLOCKSIZE:
            self.kind = data[156:157]
        return data
