"""What the three stores of buckets have in common, and the few requests in which they differ.

`Store` is the contract: a store fills in its abstract methods, a request each. Paging, splitting addresses, conditional
writes whose answer was lost, large uploads, repeating and the words of errors are here, once.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeVar

from must.base.errors import TransientError, UserError
from must.base.storage.retry import UnreachableError, is_proven, repeat
from must.base.text import without_secrets

Generation = int | str
"""Stands for what an object holds now: a number of Cloud Storage, an ETag elsewhere. 0: there is no object."""


class Entry(NamedTuple):
    """A file of a listing: its name relative to what was listed ("/" between folders), its size in bytes."""

    name: str
    size: int


class Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class ConflictError(OSError):
    """The object is not at the generation that the caller expected: another program wrote it."""


Result = TypeVar("Result")
KEY, RIGHT = "key", "right"
AGAIN = 2.0  # seconds between two clients made anew: many threads are refused at once
LATE = ". These have worked before, and were tried again for minutes; run the same again when they do"
MARK = "mustwrite"  # metadata that says which write an object came from


class Place(NamedTuple):
    """An address in parts. `account` is '' where the environment names it; `name` is '' for a whole bucket."""

    uri: str
    bucket: str
    name: str
    account: str = ""


class Head(NamedTuple):
    """What a store says of an object: bytes, generation, and the mark of the write that it came from."""

    size: int
    generation: Generation
    mark: str | None


class Store(ABC):
    """Objects by URI. What its methods raise is FileNotFoundError, ConflictError, TransientError or a ValueError that
    says what to do, whatever the client raises."""

    RANGE = 32 << 20  # bytes of one request of a download or an upload: what a lost connection costs at most
    PAGE = 1000  # names of one request of a listing
    bucket: ClassVar[str] = "bucket"  # what the store calls it
    form: ClassVar[str]  # of an address, for messages

    def __init__(self) -> None:
        self.worked = set[tuple[str, str]]()  # accounts and buckets that have answered this process
        self.logged_in = 0.0

    # A request each. They raise what the client raises, which `translate` puts into our words.

    @abstractmethod
    def head(self, place: Place) -> Head: ...

    @abstractmethod
    def page(self, place: Place, prefix: str, token: str) -> tuple[list[tuple[str, int]], str]:
        """(names and sizes of what begins with `prefix`, the next page's token): "" is the first, and none follows."""

    @abstractmethod
    def get(self, place: Place, start: int, length: int | None, generation: Generation | None) -> bytes:
        """Bytes from `start`; b"" where that is at the object's end or after it."""

    @abstractmethod
    def put(self, place: Place, data: bytes, condition: Generation | None, mark: str) -> Generation: ...

    @abstractmethod
    def put_parts(self, place: Place, path: Path, mark: str) -> None:
        """A file larger than RANGE, in several requests, each of which goes through `ask`."""

    @abstractmethod
    def copy_object(self, place: Place, target: Place) -> None:
        """On the server, in as many requests through `ask` as that takes."""

    @abstractmethod
    def remove(self, place: Place, condition: Generation | None) -> None: ...

    @abstractmethod
    def is_transient(self, error: BaseException) -> bool:
        """Whether the same request may succeed a moment later."""

    @abstractmethod
    def refused(self, error: BaseException) -> str:
        """KEY: the credentials, whatever is asked for; RIGHT: what these credentials asked for; '': neither."""

    @abstractmethod
    def log_in_again(self) -> None:
        """Drops the clients, so that the next request reads the credentials anew."""

    @abstractmethod
    def translate(self, place: Place, error: Exception) -> Exception | None:
        """A client's error in our words; None: it is none of the client's."""

    @abstractmethod
    def no_bucket(self, place: Place) -> str:
        """What to say of a bucket that is missing: '; check ...'."""

    # What is made of them.

    def stat(self, uri: str) -> Head:
        place = self.object_at(uri)
        return self.ask(place, lambda: self.head(place))

    def list_files(self, uri: str) -> Iterator[Entry]:
        """One page at a time. Placeholders of folders (names that end with "/") are left out."""
        place, token = self.split(uri), ""
        prefix = place.name.rstrip("/") + "/" if place.name else ""
        while True:
            with self.needing_bucket(place):
                page, token = self.ask(place, partial(self.page, place, prefix, token))
            for name, size in page:
                if not name.endswith("/"):
                    yield Entry(name[len(prefix) :], size)
            if not token:
                return

    def read_bytes(
        self, uri: str, start: int = 0, length: int | None = None, generation: Generation | None = None
    ) -> bytes:
        if length == 0:
            return b""
        place = self.object_at(uri)
        return self.ask(place, lambda: self.get(place, start, length, generation))

    def write_bytes(self, uri: str, data: bytes, if_generation_match: Generation | None = None) -> Generation:
        """Returns the new object's generation."""
        place, mark = self.object_at(uri), uuid.uuid4().hex
        with self.needing_bucket(place):
            try:
                return self.ask(place, lambda: self.put(place, data, if_generation_match, mark))
            except ConflictError:
                if generation := self.written_by(place, mark):
                    return generation
                raise

    def upload(self, path: Path, uri: str) -> None:
        """Files larger than RANGE go in parts, each of which is repeated by itself."""
        if path.stat().st_size <= self.RANGE:
            self.write_bytes(uri, path.read_bytes())
            return
        place, mark = self.object_at(uri), uuid.uuid4().hex
        with self.needing_bucket(place):
            try:
                self.put_parts(place, path, mark)
            except TransientError:
                raise
            except (FileNotFoundError, ValueError):  # what is complete already cannot be completed again
                if not self.written_by(place, mark):
                    raise

    def copy(self, uri: str, target: str) -> None:
        self.copy_object(self.object_at(uri), self.object_at(target))

    def delete(self, uri: str, if_generation_match: Generation | None = None) -> None:
        place = self.object_at(uri)
        with suppress(FileNotFoundError):
            self.ask(place, lambda: self.remove(place, if_generation_match))

    def written_by(self, place: Place, mark: str) -> Generation | None:
        """The object's generation if it came from the write of that mark: a first try arrived, its answer got lost."""
        with suppress(FileNotFoundError):
            found = self.ask(place, lambda: self.head(place))
            if found.mark == mark:
                return found.generation
        return None

    def split(self, uri: str) -> Place:
        """Raises ValueError: there is no bucket in it, or more than that."""
        bucket, _, name = uri.partition("://")[2].partition("/")
        if not bucket:
            raise UserError(f"{uri}: no {self.bucket}; expected {self.form}")
        if "@" in bucket:
            raise UserError(
                f"{without_secrets(uri)}: has a name or key before the {self.bucket}; expected {self.form}, and "
                "credentials in the environment"
            )
        return Place(uri, bucket, name)

    def object_at(self, uri: str) -> Place:
        place = self.split(uri)
        if not place.name:
            raise FileNotFoundError(f"{uri} is a {self.bucket}, not an object")
        return place

    @contextmanager
    def needing_bucket(self, place: Place) -> Iterator[None]:
        """Listing and writing find no object missing: then it is the bucket."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                without_secrets(f"{place.uri}: there is no {self.bucket} '{place.bucket}'{self.no_bucket(place)}")
            ) from error

    def ask(self, place: Place, call: Callable[[], Result]) -> Result:
        """`call`, repeated while its failure may be transient; its errors in our words."""
        try:
            result = repeat(place.uri, call, partial(self.may_pass, place))
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UnreachableError) else None
            late = cause if isinstance(cause, Exception) and self.refused(cause) else None
            known = self.translate(place, late or error)
            if known is None:
                raise
            kind = TransientError if late else type(known)
            raise kind(without_secrets(f"{known}{LATE if late else ''}")) from error
        self.worked.add((place.account, place.bucket))
        return result

    def may_pass(self, place: Place, error: BaseException) -> bool:
        """A refusal passes where keys or tokens are being renewed: the same have worked before.

        A key that was good for something in this bucket is; a right has to be one to this place.
        """
        refused = self.refused(error)
        known = bool(refused) and is_proven(place.uri)
        known = known or (refused == KEY and (place.account, place.bucket) in self.worked)
        if known and time.monotonic() - self.logged_in > AGAIN:
            self.logged_in = time.monotonic()
            self.log_in_again()
        return known or self.is_transient(error)


def missing(place: Place) -> FileNotFoundError:
    return FileNotFoundError(f"{place.uri} does not exist")


def conflict(place: Place) -> ConflictError:
    return ConflictError(f"{place.uri} was written by another program")
