"""The common part of the three bucket stores, and the interface of the few requests in which they differ.

A store implements the abstract methods of `Store`; each is one request. Paging, parsing of URIs, conditional writes
whose response was lost, large uploads, retries and error messages are implemented here. `repeat` repeats a request
while a server is busy or the connection is lost, with growing pauses, for minutes."""

import logging
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from must.base.errors import TransientError, UserError
from must.base.processes import per_process
from must.base.text import make_one_line, make_printable, remove_secrets

logger = logging.getLogger(__name__)

Generation = int | str
"""The version of an object: Cloud Storage's generation number, an ETag elsewhere. 0: there is no object."""


class Entry(NamedTuple):
    """A file of a listing: its name relative to the listed folder ("/" between folders), its size in bytes, and a text
    that changes with its content: a checksum or generation in a bucket, else the modification time in ns."""

    name: str
    size: int
    version: str


class Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class ConflictError(OSError):
    """The object's generation is not the expected one: another program wrote it."""


class UnreachableError(TransientError):
    """A server did not answer for minutes."""


Result = TypeVar("Result")
KEY, RIGHT = "key", "right"
LOGIN_PAUSE = 2.0  # seconds between two renewals of the client: many threads are refused at once
WORKED_BEFORE = ". The same credentials worked before, and were tried for minutes; run this again when they work"
MARK = "mustwrite"  # the object's metadata field with the identifier of the write that made it
FIRST_PAUSE = 0.2  # seconds: upper limit of the first random pause; the limit doubles with each attempt
LONGEST_PAUSE = 20.0
RETRY_TIMEOUT = 300.0  # seconds of failures after which a request is not repeated any more
SILENT, LINE_PAUSE = 5.0, 60.0  # seconds of failures before a line about them, and between two lines
HTTP_TIMEOUTS = (10, 60)  # seconds to connect, seconds without a byte
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses
# Environment variable: URIs where this run has read and written, one a line.
RETRY_AUTH_ERRORS_AT = "MUST_RETRY_AUTH_ERRORS_AT"


class Location(NamedTuple):
    """A parsed URI. `account` is '' where it comes from the environment; `name` is '' for a whole bucket."""

    uri: str
    bucket: str
    name: str
    account: str = ""


class Head(NamedTuple):
    """An object's size in bytes, its generation, and the identifier (MARK) of the write that made it."""

    size: int
    generation: Generation
    mark: str | None


class Store(ABC):
    """Objects by URI. The public methods raise FileNotFoundError, ConflictError, TransientError or a UserError; the
    client's own exceptions are translated."""

    RANGE = 32 << 20  # bytes of one request of a download or an upload: a lost connection repeats at most these
    PAGE = 1000  # names of one request of a listing
    bucket: ClassVar[str] = "bucket"  # the store's own term for a bucket
    form: ClassVar[str]  # the form of a URI, for messages
    log_in: ClassVar[str]  # what to do about refused credentials
    rights: ClassVar[str]  # what to do about a missing permission
    lost: ClassVar[tuple[type[BaseException], ...]]  # the client's errors of a lost connection
    refusing: ClassVar[tuple[type[BaseException], ...]]  # the client's errors of credentials
    refusing_codes: ClassVar[tuple[str, ...]] = ()  # the server's names for refused credentials

    def __init__(self, clients: per_process[Any]) -> None:
        self.clients = clients  # makes a client, which reads the credentials
        self.worked = set[tuple[str, str]]()  # (account, bucket) of the successful requests of this process
        self.logged_in = 0.0  # time of the last new login

    # Each of these methods is one request. They raise the client's exceptions, which `translate` converts.

    @abstractmethod
    def head(self, location: Location) -> Head: ...

    @abstractmethod
    def page(self, location: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """(objects below `prefix`, by their full names; next page's token). Token "": the first page, or no next."""

    @abstractmethod
    def get(self, location: Location, start: int, length: int | None, generation: Generation | None) -> bytes:
        """Bytes from `start`. Raises the client's error of status 416: `start` is not before the object's end."""

    @abstractmethod
    def put(self, location: Location, data: bytes, condition: Generation | None, mark: str) -> Generation: ...

    @abstractmethod
    def put_parts(self, location: Location, path: Path, mark: str) -> None:
        """Uploads a file larger than RANGE in several requests. Each request goes through `ask`."""

    @abstractmethod
    def copy_object(self, source: Location, target: Location) -> None:
        """Copies on the server. Each request goes through `ask`."""

    @abstractmethod
    def remove(self, location: Location) -> None: ...

    @abstractmethod
    def read_error(self, error: BaseException) -> tuple[int | None, str]:
        """The HTTP status of a client's error and the server's name for it. None: the server sent no error."""

    @abstractmethod
    def no_bucket(self, location: Location) -> str:
        """The end of the message about a missing bucket: '; check ...'."""

    # How errors are understood.

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same request may succeed a moment later."""
        return isinstance(error, self.lost) or is_transient(self.read_error(error)[0])

    def refused(self, error: BaseException) -> str:
        """KEY: the server refused the credentials; RIGHT: the credentials lack the permission; '': another error."""
        status, code = self.read_error(error)
        if isinstance(error, self.refusing) or status == 401 or code in self.refusing_codes:
            return KEY
        return RIGHT if status == 403 else ""

    def translate(self, location: Location, error: Exception) -> Exception | None:
        """The exception to raise for a client's error; None: the error is not the client's."""
        uri, (status, code) = location.uri, self.read_error(error)
        reason = f" ({code})" if code else ""
        if self.refused(error) == KEY:
            return UserError(f"{uri}: the server does not accept these credentials{reason}. {self.log_in}")
        if status == 404:
            return FileNotFoundError(f"{uri} does not exist")
        if status == 416:
            return EOFError(f"{uri} ends before")
        if status in (409, 412):
            return ConflictError(f"{uri} was written by another program")
        if status == 403:
            return UserError(f"{uri}: no permission{reason}; {self.rights.format(bucket=location.bucket)}")
        return UserError(f"{uri}: the server refused: {make_one_line(error)}") if status else None

    # The public operations, implemented with these requests.

    def stat(self, uri: str) -> Head:
        location = self.object_at(uri)
        return self.ask(location, lambda: self.head(location))

    def list_files(self, uri: str) -> Iterator[Entry]:
        """Lists one page at a time. Placeholders of folders (names that end with "/") are left out."""
        location, token = self.split(uri), ""
        prefix = location.name.rstrip("/") + "/" if location.name else ""
        while True:
            with self.needing_bucket(location):
                page, token = self.ask(location, partial(self.page, location, prefix, token))
            for entry in page:
                if not entry.name.endswith("/"):
                    yield entry._replace(name=entry.name[len(prefix) :])
            if not token:
                return

    def read_bytes(
        self, uri: str, start: int = 0, length: int | None = None, generation: Generation | None = None
    ) -> bytes:
        if length == 0:
            return b""
        location = self.object_at(uri)
        with suppress(EOFError):
            return self.ask(location, lambda: self.get(location, start, length, generation))
        return b""

    def write_bytes(self, uri: str, data: bytes, if_generation_match: Generation | None = None) -> Generation:
        """Returns the new object's generation."""
        location, mark = self.object_at(uri), uuid.uuid4().hex
        with self.needing_bucket(location):
            try:
                return self.ask(location, lambda: self.put(location, data, if_generation_match, mark))
            except ConflictError:
                if generation := self.written_by(location, mark):
                    return generation
                raise

    def upload(self, path: Path, uri: str) -> None:
        """Files larger than RANGE are sent in parts; each part is retried singly."""
        if path.stat().st_size <= self.RANGE:
            self.write_bytes(uri, path.read_bytes())
            return
        location, mark = self.object_at(uri), uuid.uuid4().hex
        with self.needing_bucket(location):
            try:
                self.put_parts(location, path, mark)
            except TransientError:
                raise
            except (FileNotFoundError, ValueError):  # an upload that is complete already cannot be completed again
                if not self.written_by(location, mark):
                    raise

    def copy(self, uri: str, target: str) -> None:
        self.copy_object(self.object_at(uri), self.object_at(target))

    def delete(self, uri: str) -> None:
        location = self.object_at(uri)
        with suppress(FileNotFoundError):
            self.ask(location, lambda: self.remove(location))

    def written_by(self, location: Location, mark: str) -> Generation | None:
        """The object's generation if the write `mark` made it: the write succeeded, but its response was lost."""
        with suppress(FileNotFoundError):
            head = self.ask(location, lambda: self.head(location))
            if head.mark == mark:
                return head.generation
        return None

    def split(self, uri: str) -> Location:
        """Parses a URI."""
        bucket, _, name = uri.partition("://")[2].partition("/")
        if not bucket:
            raise UserError(f"{uri}: no {self.bucket}; expected {self.form}")
        if "@" in bucket:
            raise UserError(
                f"{remove_secrets(uri)}: has a name or key before the {self.bucket}; expected {self.form}, and "
                "credentials in the environment"
            )
        return Location(uri, bucket, name)

    def object_at(self, uri: str) -> Location:
        location = self.split(uri)
        if not location.name:
            raise FileNotFoundError(f"{uri} is a {self.bucket}, not an object")
        return location

    @contextmanager
    def needing_bucket(self, location: Location) -> Iterator[None]:
        """Turns FileNotFoundError into a UserError: for listing and writing it means that the bucket is missing."""
        try:
            yield
        except FileNotFoundError as error:
            message = f"{location.uri}: there is no {self.bucket} '{location.bucket}'{self.no_bucket(location)}"
            raise UserError(remove_secrets(message)) from error

    def ask(self, location: Location, call: Callable[[], Result]) -> Result:
        """Calls `call`, with retries of transient errors, and translates its errors."""
        try:
            result = repeat(location.uri, call, partial(self.may_pass, location))
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UnreachableError) else None
            refusal = cause if isinstance(cause, Exception) and self.refused(cause) else None
            translated = self.translate(location, refusal or error)
            if translated is None:
                raise
            kind = TransientError if refusal else type(translated)
            raise kind(remove_secrets(f"{translated}{WORKED_BEFORE if refusal else ''}")) from error
        self.worked.add((location.account, location.bucket))
        return result

    def may_pass(self, location: Location, error: BaseException) -> bool:
        """Whether the request is retried. A refusal is retried where the same credentials have worked before: they may
        be renewed at this moment.

        For credentials (KEY) a success in the same bucket is enough; for a permission (RIGHT) it must be for this URI.
        """
        refused = self.refused(error)
        uri, proven = location.uri, proven_uris()
        worked = bool(refused) and any(uri == folder or uri.startswith(f"{folder.rstrip('/')}/") for folder in proven)
        worked = worked or (refused == KEY and (location.account, location.bucket) in self.worked)
        if worked and time.monotonic() - self.logged_in > LOGIN_PAUSE:
            self.logged_in = time.monotonic()
            self.clients.drop()
        return worked or self.is_transient(error)


def wait_for_credentials(*uris: str) -> None:
    """From now on, refused credentials and permissions are transient errors at these URIs and below, in this process
    and its children. They have worked there in this run; while keys and tokens are renewed, a refusal can be temporary.
    """
    os.environ[RETRY_AUTH_ERRORS_AT] = "\n".join(dict.fromkeys([*proven_uris(), *filter(None, uris)]))


def proven_uris() -> list[str]:
    return os.environ.get(RETRY_AUTH_ERRORS_AT, "").splitlines()


def is_transient(status: int | None) -> bool:
    """Whether the same request may succeed a moment later, by the HTTP status of the response."""
    return status in TRANSIENT


def repeat(
    where: str,
    call: Callable[[], Result],
    may_pass: Callable[[BaseException], bool] = lambda error: isinstance(error, TransientError),
    timeout: float | None = None,
) -> Result:
    """Calls `call` until it succeeds or its error is not transient; returns its result. After SILENT seconds it logs
    that it waits. `where`: a URI or address, for the messages; `timeout`: seconds of failures after which it gives up;
    RETRY_TIMEOUT if not given.
    Raises TransientError: the limit was reached: the last error of `call`, or an UnreachableError."""
    timeout = RETRY_TIMEOUT if timeout is None else timeout
    pause, waiting = FIRST_PAUSE, Waiting(where, timeout)
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            wait = random.uniform(0, pause)
            waiting.log(error, wait)
            if time.monotonic() + wait > waiting.started + timeout:
                if isinstance(error, TransientError):
                    raise
                raise make_final_error(where, error, timeout) from error
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


class Waiting:
    """Logs that a request is repeated, once it fails for SILENT seconds; of all requests one in LINE_PAUSE seconds."""

    last = -LINE_PAUSE  # time of the last line

    def __init__(self, where: str, timeout: float) -> None:
        self.where, self.timeout, self.started = where, timeout, time.monotonic()

    def log(self, error: Exception, wait: float = 0.0) -> None:
        """`error`: of the request; `wait`: seconds until it is repeated."""
        now = time.monotonic()
        if now + wait > self.started + SILENT and now > Waiting.last + LINE_PAUSE:
            Waiting.last = now
            text = f"{self.where}: no answer yet ({describe(error)}); repeated for up to {self.timeout:g} s"
            logger.warning(make_printable(remove_secrets(text)))


def describe(error: Exception) -> str:
    return remove_secrets(next(iter(str(error).splitlines()), "")) or type(error).__name__


def make_final_error(where: str, error: Exception, timeout: float) -> UnreachableError:
    return UnreachableError(f"{where}: the server could not be reached for {timeout:g} s: {describe(error)}")
