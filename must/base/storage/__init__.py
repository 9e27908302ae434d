"""One interface for local paths and buckets: gs://, s3:// and az://.

A written file is either complete or absent: a local file is renamed when it is complete, an object becomes visible when
its upload ends. Missing files raise FileNotFoundError in both cases. What the user has to correct (no credentials, no
permission, a full disk, an unknown scheme) raises ValueError with one line that says what to do."""

import errno
import importlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from must.base.errors import TransientError, UserError
from must.base.processes import without_collector
from must.base.storage.disk import (
    TEMPORARY,
    HashingFile,
    check_regular,
    disk_errors,
    local,
    open_local,
    open_regular,
    remove_leftovers,
    start_writing,
    walk,
)  # fmt: skip
from must.base.storage.store import (
    ConflictError,
    Entry,
    Generation,
    Store,
    UnreachableError,
    Writable,
    is_transient,
    repeat,
    wait_for_credentials,
)
from must.base.text import abbreviate, remove_secrets

__all__ = [
    "TEMPORARY", "ConflictError", "Entry", "Generation", "HashingFile", "TransientError", "UnreachableError",
    "Writable", "disk_errors", "is_transient", "local", "remove_leftovers", "repeat",
    "start_writing", "wait_for_credentials",
]  # fmt: skip

STORES = {
    "gs": ("must.base.storage.gcs", "google-cloud-storage", "gcs"),
    "s3": ("must.base.storage.s3", "boto3", "s3"),
    **dict.fromkeys(("az", "abfs", "abfss"), ("must.base.storage.azure", "azure-storage-blob", "azure")),
}
"""By scheme: the module with its STORE, the package that this needs, and the extra that installs the package."""


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is in a bucket."""
    text = str(uri)
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme not in ("", "file", *STORES):
        raise UserError(
            f"{remove_secrets(text)}: unknown scheme '{scheme}://'; known are local paths, gs://, s3://, az:// and "
            "abfss://"
        )
    return scheme in STORES


def join(uri: str | Path, *parts: str) -> str:
    """The path or URI of `parts` below `uri`, with one "/" between them."""
    base = str(uri).removeprefix("file://")
    for part in parts:
        base = f"{base.rstrip('/')}/{part}" if base.rstrip("/") else f"{base}{part}"
    return base


def exists(uri: str | Path) -> bool:
    """Whether a file (an object) with exactly this name exists. A remote folder is not an object."""
    if is_remote(uri):
        return find_generation(uri) is not None
    try:
        return local(uri).exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def size(uri: str | Path) -> int:
    """The file's size in bytes. Raises FileNotFoundError."""
    if is_remote(uri):
        return find_store(uri).stat(str(uri)).size
    return local(uri).stat().st_size


def find_generation(uri: str | Path) -> Generation | None:
    """The file's version, which changes with its content: the object's generation or ETag, or the modification time in
    ns. None when there is no such file."""
    try:
        if is_remote(uri):
            return find_store(uri).stat(str(uri)).generation
        return local(uri).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def list_files(uri: str | Path, on_problem: Callable[[str, str], None] | None = None) -> Iterator[Entry]:
    """Files below a folder, streamed in no particular order.

    Symbolic links are followed, except back into a folder that is being listed. Entries that cannot be listed (no
    permission, a broken or circular link, a socket, a folder too deep) go to `on_problem` as (name, reason).
    Raises FileNotFoundError, NotADirectoryError: there is no such local folder. A missing remote folder is empty."""
    if is_remote(uri):
        return find_store(uri).list_files(str(uri))
    return walk(local(uri), on_problem or (lambda name, reason: None))


def list_existing(uri: str | Path) -> Iterator[Entry]:
    """As `list_files`; nothing where there is no such folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from list_files(uri)


def read_bytes(uri: str | Path, start: int = 0, length: int | None = None) -> bytes:
    """The file's bytes [start, start + length), or up to its end. Raises FileNotFoundError, OSError: no file."""
    if is_remote(uri):
        return find_store(uri).read_bytes(str(uri), start, length)
    with io.BufferedReader(open_regular(str(uri).removeprefix("file://"))) as file:
        available = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(start)
        # With the exact size: a read of "at most N bytes" first allocates N bytes.
        return file.read(available if length is None else min(length, available))


def read_versioned(uri: str | Path) -> tuple[bytes | None, Generation]:
    """The content (None if there is no file) and its generation, for a conditional `write_bytes`."""
    current = find_generation(uri)  # before the content is read: a write in between becomes a conflict, which is safe
    return (None, 0) if current is None else (read_bytes(uri), current)


def write_bytes(uri: str | Path, data: bytes, if_generation_match: Generation | None = None) -> None:
    """Writes the whole file in one step. Overwrites an existing file.
    Raises ConflictError: the file's generation is not `if_generation_match` (0: the file must not exist). Of several
    programs that write with the same condition, exactly one succeeds."""
    if is_remote(uri):
        find_store(uri).write_bytes(str(uri), data, if_generation_match)
        return
    with open_local(local(uri), if_generation_match) as file:
        file.write(data)


@contextmanager
def open_write(uri: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to. It gets its name when the block ends; after an error no file is left."""
    if not is_remote(uri):
        with open_local(local(uri)) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="must-") as folder, disk_errors(folder):
        path = Path(folder) / "file"
        with path.open("wb") as file:
            yield file
        find_store(uri).upload(path, str(uri))


def download(uri: str | Path, path: str | Path) -> None:
    """Copies a file to a local path. The copy is complete or absent. Raises FileNotFoundError."""
    with open_write(path) as file:
        copy(uri, file)


@contextmanager
def local_copy(uri: str | Path) -> Iterator[Path]:
    """A local path of the file while the block runs: the file itself, or a temporary copy of a remote one.
    Raises OSError: it is a pipe, socket or device."""
    if not is_remote(uri):
        path = local(uri)
        if path.exists():
            check_regular(path.stat(), path)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="must-") as folder:
        path = Path(folder) / "copy"
        download(uri, path)
        yield path


def copy(uri: str | Path, file: Writable, follow: bool = True) -> None:
    """Writes a file's bytes to an open file. Raises FileNotFoundError; ValueError: it is a link, with follow=False."""
    if not is_remote(uri):
        with open_regular(local(uri)) as source:
            if not follow and not os.path.samestat(os.fstat(source.fileno()), local(uri).lstat()):
                raise UserError(f"{uri}: is a link; put the file itself there")
            shutil.copyfileobj(source, file, 1 << 20)
        return
    store = find_store(uri)
    size, generation, _ = store.stat(str(uri))
    for start in range(0, size, store.RANGE):  # a lost connection costs one range; all are of one generation
        length, data = min(store.RANGE, size - start), b""
        with suppress(ConflictError, FileNotFoundError):
            data = store.read_bytes(str(uri), start, length, generation)
        if len(data) != length:
            raise UserError(f"{uri}: was overwritten while it was read, after {start} of {size} bytes")
        file.write(data)


def compute_sha256(uri: str | Path) -> str:
    """Of a file or an object, read in parts."""
    hashing = HashingFile(io.BytesIO(), limit=0)
    copy(uri, hashing)
    return hashing.sha256


def upload(path: str | Path, uri: str | Path) -> None:
    """Copies a local file to `uri`."""
    if is_remote(uri):
        find_store(uri).upload(Path(path), str(uri))
    else:
        download(path, uri)


def move(uri: str | Path, target: str | Path) -> None:
    """Renames a file within one bucket or disk. In a bucket: a copy on the server, then a deletion."""
    if is_remote(uri):
        find_store(uri).copy(str(uri), str(target))
        delete(uri)
    else:
        local(target).parent.mkdir(parents=True, exist_ok=True)
        local(uri).replace(local(target))


def delete(uri: str | Path) -> None:
    """Deletes a file, if it exists."""
    if is_remote(uri):
        find_store(uri).delete(str(uri))
    elif exists(uri):
        local(uri).unlink(missing_ok=True)


def delete_folder(uri: str | Path) -> None:
    """Deletes a folder with all its files."""
    if is_remote(uri):
        with ThreadPool(16) as pool:  # after an error nobody waits for its threads
            pool.map(lambda entry: delete(join(uri, entry.name)), list_files(uri))
    else:
        shutil.rmtree(local(uri), ignore_errors=True)


def find_store(uri: str | Path) -> Store:
    """The store of a bucket's URI. Its module is imported only when needed: every client is an optional package."""
    scheme = str(uri).split("://", 1)[0]
    module, package, extra = STORES[scheme]
    try:
        return importlib.import_module(module).STORE
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs the package {package} ({error}); install it with: pip install 'must-clip[{extra}]'"
        ) from None


Result = TypeVar("Result")
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def read_object(uri: str | Path, check: Callable[[dict[str, Any]], Result], damaged: Exception) -> Result:
    """`parse_object` of a file. Errors of reading, such as an unreachable store, are not replaced by `damaged`.
    Raises FileNotFoundError: there is no such file."""
    return parse_object(read_bytes(uri), check, damaged)


def parse_object(data: bytes | str, check: Callable[[dict[str, Any]], Result], damaged: Exception) -> Result:
    """Parses `data` as a JSON object and returns `check(object)`.
    Raises the exception `damaged`: `data` is no JSON object, or `check` raised one of DAMAGE."""
    try:
        content = decode_json(data)
        if isinstance(content, dict):
            return check(content)
    except DAMAGE:
        pass
    raise damaged


def decode_json(data: bytes | str) -> Any:
    """json.loads with the garbage collector off: it would scan all parsed objects many times."""
    with without_collector():
        return json.loads(data)


def parse_object_or_none(data: bytes | str, check: Callable[[dict[str, Any]], Result]) -> Result | None:
    """`parse_object`, or None where it raises."""
    try:
        return parse_object(data, check, UserError())
    except ValueError:
        return None


def read_json(path: str, flag: str) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        return read_object(path, dict, UserError(f"{flag} {path}: is damaged or of another kind"))
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None


def check_relative_path(name: object, where: str) -> str:
    """Returns `name` if it is a relative path below its folder; "/" may separate folders. `where`: for the message."""
    if isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/")):
        return name
    raise UserError(
        f"{where}: the name {abbreviate(name)} leads out of its folder; it may not have been written by must"
    )


def list_names(uri: str) -> list[str]:
    """The names of the files below `uri`, checked by `check_relative_path`, so that they can be copied.
    Raises ValueError: a name leads out of the folder; then nothing should be copied; FileNotFoundError,
    NotADirectoryError: there is no such local folder."""
    return sorted(check_relative_path(entry.name, uri) for entry in list_files(uri))


def require_no_links(uri: str, flag: str) -> None:
    """Raises ValueError: there is a link below the local folder `uri`, whose target must perhaps not be published."""
    if is_remote(uri):
        return
    root = local(uri)
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *files)):
            name = abbreviate(str(path.relative_to(root)))
            if path.is_symlink():
                raise UserError(f"{flag} {uri}: {name} is a link; put the file itself there")
