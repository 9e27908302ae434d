"""gs:// through the google-cloud-storage client; `must.base.storage` is what the rest of the code calls.

STORAGE_EMULATOR_HOST points it at another server. Every request is repeated on 429, 5xx and lost connections, with
growing pauses, for up to five minutes. Long transfers are many requests, so these count from the last progress.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests.adapters  # type: ignore[import-untyped]
import requests.exceptions  # type: ignore[import-untyped]
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from must.base.processes import per_process
from must.base.storage import retry
from must.base.storage.base import ConflictError, Entry, Generation, Stat
from must.base.storage.retry import TIMEOUT

Result = TypeVar("Result")
PAGE = 1000  # names of one request of a listing
RANGE = 32 << 20  # bytes of one request of a download or an upload: what a lost connection costs at most


def stat(uri: str) -> Stat:
    blob = blob_of(uri)
    with_retry(uri, lambda: blob.reload(retry=None, timeout=TIMEOUT))
    return Stat(int(blob.size), int(blob.generation))


def list_files(uri: str) -> Iterator[Entry]:
    """One page at a time. Placeholders of folders (names that end with "/") are left out."""
    bucket, prefix = bucket_and_name(uri)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    token: str | None = None
    while True:
        with missing_bucket(uri):
            page, token = with_retry(uri, partial(one_page, bucket, prefix, token))
        yield from page
        if not token:
            return


def one_page(bucket: str, prefix: str, token: str | None) -> tuple[list[Entry], str | None]:
    blobs = client().list_blobs(
        bucket,
        prefix=prefix,
        page_token=token,
        page_size=PAGE,
        fields="items(name,size),nextPageToken",
        retry=None,
        timeout=TIMEOUT,
    )
    page = next(blobs.pages, ())
    entries = [Entry(blob.name[len(prefix) :], int(blob.size)) for blob in page if not blob.name.endswith("/")]
    return entries, blobs.next_page_token


def read_bytes(uri: str, start: int = 0, length: int | None = None, generation: Generation | None = None) -> bytes:
    if length == 0:
        return b""
    blob = blob_of(uri, generation)
    end = None if length is None else start + length - 1

    def read() -> bytes:
        try:
            return blob.download_as_bytes(start=start or None, end=end, retry=None, timeout=TIMEOUT)
        except api.RequestRangeNotSatisfiable:  # at or past the end, or an empty object: as a local file does
            return b""

    return with_retry(uri, read)


def write_bytes(uri: str, data: bytes, if_generation_match: Generation | None = None) -> Generation:
    """Returns the new object's generation."""

    def send() -> int:
        blob = blob_of(uri, pieces=True)
        blob.upload_from_string(
            data,
            content_type="application/octet-stream",
            checksum="auto",
            if_generation_match=if_generation_match,
            retry=for_pieces(),
            timeout=TIMEOUT,
        )
        return int(blob.generation)

    try:
        with missing_bucket(uri):
            return with_retry(uri, send)
    except ConflictError:
        # A first try may have arrived while its answer got lost. Then what is there is what we sent.
        with suppress(FileNotFoundError):
            found = stat(uri)
            if found.size == len(data) and read_bytes(uri, generation=found.generation) == data:
                return found.generation
        raise


def upload(path: Path, uri: str) -> None:
    def send() -> None:
        blob_of(uri, pieces=True).upload_from_filename(
            str(path),
            content_type="application/octet-stream",
            checksum="auto",
            retry=for_pieces(),  # of each piece; the server leaves out the bytes that it has from a try before
            timeout=TIMEOUT,
        )

    with missing_bucket(uri):
        with_retry(uri, send)


def copy(uri: str, target: str) -> None:
    """On the server."""
    source, destination = blob_of(uri), blob_of(target)

    def some_of_it(token: str | None) -> str | None:
        return destination.rewrite(source, token=token, retry=None, timeout=TIMEOUT)[0]

    token = with_retry(uri, lambda: some_of_it(None))
    while token is not None:
        token = with_retry(uri, partial(some_of_it, token))


def delete(uri: str, if_generation_match: int | None = None) -> None:
    blob = blob_of(uri)
    with suppress(FileNotFoundError):
        with_retry(uri, lambda: blob.delete(if_generation_match=if_generation_match, retry=None, timeout=TIMEOUT))


@contextmanager
def missing_bucket(uri: str) -> Iterator[None]:
    """Listing and writing find no object missing: then it is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        bucket, _ = bucket_and_name(uri)
        raise ValueError(
            f"{uri}: there is no bucket '{bucket}', or you may not see it; "
            f"check the name, or make it with: gcloud storage buckets create gs://{bucket}"
        ) from error


def bucket_and_name(uri: str) -> tuple[str, str]:
    """gs://bucket/name -> (bucket, name)."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: no bucket; expected gs://bucket/name")
    return bucket, name


def blob_of(uri: str, generation: Generation | None = None, pieces: bool = False) -> Any:
    """`pieces`: what is uploaded goes in requests of RANGE bytes, if it is larger than 8 MiB."""
    bucket, name = bucket_and_name(uri)
    if not name:
        raise FileNotFoundError(f"{uri} is a bucket, not an object")
    return client().bucket(bucket).blob(name, RANGE if pieces else None, generation=generation)


def client() -> Any:
    return client_of(os.environ.get("STORAGE_EMULATOR_HOST", ""))


@per_process
def client_of(emulator: str) -> Any:
    if emulator:
        made = google_storage.Client(project="test", credentials=AnonymousCredentials())
    else:
        try:
            made = google_storage.Client()
        except auth.DefaultCredentialsError as error:
            raise ValueError(NO_CREDENTIALS) from error
        except OSError:  # there are credentials, but no project; reading and writing objects needs none
            made = google_storage.Client(project="none")
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=64)  # 64: a worker's reading threads
    made._http.mount("https://", adapter)
    made._http.mount("http://", adapter)
    return made


NO_CREDENTIALS = (
    "gs:// needs Google Cloud credentials and found none; log in with `gcloud auth application-default login`, "
    "or set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run in a pod whose service account may read the bucket"
)


def with_retry(uri: str, call: Callable[[], Result]) -> Result:
    """`call`, repeated while the server is busy or the connection breaks; its errors are `must.base.storage`'s."""
    try:
        return retry.repeat(uri, call, is_transient)
    except (api.NotFound, InvalidResponse) as error:
        if isinstance(error, InvalidResponse) and status_of(error) != 404:
            raise
        raise FileNotFoundError(f"{uri} does not exist") from error
    except api.PreconditionFailed as error:
        raise ConflictError(f"{uri} was written by another program") from error
    except api.Unauthorized as error:
        raise ValueError(f"{uri}: the server does not accept these credentials. {NO_CREDENTIALS}") from error
    except api.Forbidden as error:
        raise ValueError(f"{uri}: no permission; ask for the role Storage Object User on the bucket") from error
    except auth.RefreshError as error:
        raise ValueError(f"{uri}: the credentials have expired or were revoked. {NO_CREDENTIALS}") from error
    except api.RetryError as error:  # of a piece
        raise retry.given_up(uri, error) from error


def for_pieces() -> Retry:
    """How the client repeats a piece of an upload, the clock of which starts with the piece: as we repeat a request.

    Its own DEFAULT_RETRY takes a damaged answer and some broken connections for final.
    """
    return Retry(is_transient, retry.FIRST_PAUSE, retry.LONGEST_PAUSE, 2.0, retry.RETRY_TIMEOUT)


TRANSIENT_ERRORS = (
    ConnectionError,
    requests.exceptions.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.Timeout,
    requests.exceptions.ContentDecodingError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    DataCorruption,
)


def is_transient(error: BaseException) -> bool:
    """Whether an error is transient: the same request may succeed a moment later."""
    if isinstance(error, auth.TransportError):
        return True
    return isinstance(error, TRANSIENT_ERRORS) or retry.is_transient(status_of(error))


def status_of(error: BaseException) -> int | None:
    if isinstance(error, api.GoogleAPICallError):
        return error.code
    if isinstance(error, InvalidResponse):
        return error.response.status_code
    return None
