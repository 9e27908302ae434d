"""gs:// through the google-cloud-storage client. Other code calls `must.base.storage`, not this module.

STORAGE_EMULATOR_HOST sets another server. Every request is repeated on 429, 5xx and lost connections, with growing
pauses, for up to five minutes. A long transfer is many requests, so its five minutes count from the last progress."""

import http.client
import os
from functools import partial
from pathlib import Path
from typing import Any

import requests.adapters  # type: ignore[import-untyped]
import requests.exceptions  # type: ignore[import-untyped]
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from must.base.errors import UserError
from must.base.processes import per_process
from must.base.storage import store
from must.base.storage.store import HTTP_TIMEOUTS, MARK, Entry, Generation, Head, Location, Store
from must.base.text import make_one_line

NO_CREDENTIALS = (
    "gs:// needs Google Cloud credentials and found none; log in with `gcloud auth application-default login`, "
    "or set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run in a pod whose service account may read the bucket"
)


class Gcs(Store):
    form = "gs://bucket/name"
    log_in, rights = NO_CREDENTIALS, "ask for the role Storage Object User on the bucket"
    lost = (
        ConnectionError, auth.TransportError, requests.exceptions.ConnectionError,
        requests.exceptions.ChunkedEncodingError, requests.exceptions.Timeout,
        requests.exceptions.ContentDecodingError, http.client.HTTPException, urllib3.exceptions.HTTPError,
        DataCorruption,
    )  # fmt: skip
    refusing = (auth.RefreshError,)

    def head(self, location: Location) -> Head:
        blob = get_blob(location)
        blob.reload(retry=None, timeout=HTTP_TIMEOUTS)
        return Head(int(blob.size), int(blob.generation), (blob.metadata or {}).get(MARK))

    def page(self, location: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        blobs = client().list_blobs(
            location.bucket,
            prefix=prefix,
            page_token=token or None,
            page_size=self.PAGE,
            fields="items(name,size,md5Hash,generation),nextPageToken",
            retry=None,
            timeout=HTTP_TIMEOUTS,
        )
        page = [
            Entry(blob.name, int(blob.size), blob.md5_hash or str(blob.generation)) for blob in next(blobs.pages, ())
        ]
        return page, blobs.next_page_token or ""

    def get(self, location: Location, start: int, length: int | None, generation: Generation | None) -> bytes:
        end = None if length is None else start + length - 1
        blob = get_blob(location, generation=generation)
        return blob.download_as_bytes(start=start or None, end=end, retry=None, timeout=HTTP_TIMEOUTS)

    def put(self, location: Location, data: bytes, condition: Generation | None, mark: str) -> Generation:
        blob = self.marked(location, mark)
        blob.upload_from_string(data, if_generation_match=condition, **self.upload_options(location))
        return int(blob.generation)

    def put_parts(self, location: Location, path: Path, mark: str) -> None:
        """The client sends the parts; the server skips bytes that it has from an earlier attempt."""
        blob, options = self.marked(location, mark), self.upload_options(location)
        self.ask(location, lambda: blob.upload_from_filename(str(path), **options))

    def marked(self, location: Location, mark: str) -> Any:
        blob = get_blob(location, chunk_size=self.RANGE)  # the client uses chunks from 8 MiB on
        blob.metadata = {MARK: mark}
        return blob

    def upload_options(self, location: Location) -> dict[str, Any]:
        return {
            "content_type": "application/octet-stream",
            "checksum": "auto",
            "retry": Retry(  # the timeout counts from each part; DEFAULT_RETRY does not retry a damaged response
                self.is_transient,
                store.FIRST_PAUSE,
                store.LONGEST_PAUSE,
                timeout=store.RETRY_TIMEOUT,
                on_error=store.Waiting(location.uri, store.RETRY_TIMEOUT).log,
            ),
            "timeout": HTTP_TIMEOUTS,
        }

    def copy_object(self, source: Location, target: Location) -> None:
        blob, destination, token = get_blob(source), get_blob(target), None
        while True:
            rewrite = partial(destination.rewrite, blob, token=token, retry=None, timeout=HTTP_TIMEOUTS)
            token = self.ask(source, rewrite)[0]
            if token is None:
                return

    def remove(self, location: Location) -> None:
        get_blob(location).delete(retry=None, timeout=HTTP_TIMEOUTS)

    def no_bucket(self, location: Location) -> str:
        return (
            ", or you may not see it; check the name, or make it with: "
            f"gcloud storage buckets create gs://{location.bucket}"
        )

    def read_error(self, error: BaseException) -> tuple[int | None, str]:
        if isinstance(error, api.GoogleAPICallError):
            return error.code, ""
        return (error.response.status_code if isinstance(error, InvalidResponse) else None), ""

    def translate(self, location: Location, error: Exception) -> Exception | None:
        if isinstance(error, api.RetryError):  # of a part
            return store.make_final_error(location.uri, error, store.RETRY_TIMEOUT)
        return super().translate(location, error)


def get_blob(location: Location, **options: Any) -> Any:
    return client().bucket(location.bucket).blob(location.name, **options)


def client() -> Any:
    return make_client(os.environ.get("STORAGE_EMULATOR_HOST", ""))


@per_process
def make_client(emulator: str) -> Any:
    if emulator:
        client = google_storage.Client(project="test", credentials=AnonymousCredentials())
    else:
        try:
            client = google_storage.Client()
        except auth.DefaultCredentialsError as error:
            key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
            reason = f"GOOGLE_APPLICATION_CREDENTIALS {key}: {make_one_line(error)[:300]}"
            raise UserError(reason if key else NO_CREDENTIALS) from error
        except OSError:  # there are credentials but no project, which reading and writing objects does not need
            client = google_storage.Client(project="none")
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=64)  # 64: the reader threads of a worker
    client._http.mount("https://", adapter)
    client._http.mount("http://", adapter)
    return client


STORE = Gcs(make_client)
