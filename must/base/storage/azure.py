"""az:// and abfss:// through azure-storage-blob; `must.base.storage` is what the rest of the code calls.

az://CONTAINER/NAME lies in the account that the environment names, as Azure's own command line finds it:
AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or, with
neither, whoever is logged in (azure-identity: `az login`, a workload's identity).
abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/NAME names the account itself. An object's generation is its ETag.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core import exceptions as core
from azure.storage.blob import BlobBlock, BlobServiceClient

from must.base.processes import per_process
from must.base.storage.base import ConflictError, Entry, Generation, Stat
from must.base.storage.retry import TIMEOUT, repeat
from must.base.storage.retry import is_transient as transient_status

Result = TypeVar("Result")
PAGE = 1000  # names of one request of a listing
RANGE = 32 << 20  # bytes of one request of a download or an upload; Azure takes up to 50,000 blocks
MARK = "mustwrite"  # metadata that says which write an object came from


def stat(uri: str) -> Stat:
    found = told(uri, blob_of(uri).get_blob_properties)
    return Stat(int(found.size), str(found.etag))


def list_files(uri: str) -> Iterator[Entry]:
    """One page at a time. Folders, which accounts with a hierarchical namespace keep as objects, are left out."""
    account, container, prefix = split(uri)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    token: str | None = None

    def one_page() -> tuple[list[Any], str | None]:
        place = client(account).get_container_client(container)
        found = place.list_blobs(name_starts_with=prefix, include=["metadata"], results_per_page=PAGE)
        pages = found.by_page(token)
        return list(next(pages, ())), pages.continuation_token

    while True:
        with needing_container(uri):
            page, token = told(uri, one_page)
        for blob in page:
            if not (blob.name.endswith("/") or (blob.metadata or {}).get("hdi_isfolder")):
                yield Entry(blob.name[len(prefix) :], int(blob.size))
        if not token:
            return


def read_bytes(uri: str, start: int = 0, length: int | None = None, generation: Generation | None = None) -> bytes:
    if length == 0:
        return b""

    def read() -> bytes:
        try:
            return blob_of(uri).download_blob(start, length, **condition_of(generation)).readall()
        except core.HttpResponseError as error:
            if error.status_code == 416:  # at or after the end, or an empty object: as a local file does
                return b""
            raise

    return told(uri, read)


def write_bytes(uri: str, data: bytes, if_generation_match: Generation | None = None) -> str:
    """Returns the new object's generation."""
    mark = uuid.uuid4().hex

    def send() -> str:
        options = {"overwrite": if_generation_match != 0, "metadata": {MARK: mark}, "validate_content": True}
        return str(blob_of(uri).upload_blob(data, **options, **condition_of(if_generation_match))["etag"])

    with needing_container(uri):
        try:
            return told(uri, send)
        except ConflictError:
            if generation := written_by(uri, mark):
                return generation
            raise


def upload(path: Path, uri: str) -> None:
    """Files larger than RANGE go in blocks, each of which is repeated by itself; left-over ones go after a week."""
    size, mark = path.stat().st_size, uuid.uuid4().hex
    if size <= RANGE:
        write_bytes(uri, path.read_bytes())
        return
    names = [base64.b64encode(f"{mark}-{number:06d}".encode()).decode() for number in range(-(-size // RANGE))]

    def send(name: str, data: bytes) -> None:
        told(uri, lambda: blob_of(uri).stage_block(name, data, validate_content=True))

    def commit() -> None:
        blob_of(uri).commit_block_list([BlobBlock(name) for name in names], metadata={MARK: mark})

    with needing_container(uri):
        with path.open("rb") as file:
            for name in names:
                send(name, file.read(RANGE))
        try:
            told(uri, commit)
        except ValueError:  # a block list that was committed already is invalid the second time
            if not written_by(uri, mark):
                raise


def copy(uri: str, target: str) -> None:
    """On the server."""
    destination = blob_of(target)
    state = told(uri, lambda: destination.start_copy_from_url(blob_of(uri).url))["copy_status"]
    while state == "pending":
        time.sleep(0.2)
        state = told(target, destination.get_blob_properties).copy.status
    if state != "success":
        raise ValueError(f"{uri}: the server could not copy it to {target} ({state})")


def delete(uri: str, if_generation_match: Generation | None = None) -> None:
    with suppress(FileNotFoundError):
        told(uri, lambda: blob_of(uri).delete_blob(**condition_of(if_generation_match)))


def condition_of(generation: Generation | None) -> dict[str, Any]:
    """That the object is the one of that ETag; that there is none yet (0) is said in other ways."""
    if generation is None or generation == 0:
        return {}
    return {"etag": str(generation), "match_condition": MatchConditions.IfNotModified}


def written_by(uri: str, mark: str) -> str | None:
    """The object's generation if it came from the write of that mark: a first try arrived and its answer got lost."""
    with suppress(FileNotFoundError):
        found = told(uri, blob_of(uri).get_blob_properties)
        if found.metadata.get(MARK) == mark:
            return str(found.etag)
    return None


@contextmanager
def needing_container(uri: str) -> Iterator[None]:
    """Listing and writing find no object missing: then it is the container."""
    try:
        yield
    except FileNotFoundError as error:
        _, container, _ = split(uri)
        raise ValueError(
            f"{uri}: there is no container '{container}'; check the name and the account, "
            f"or make it with: az storage container create --name {container}"
        ) from error


def split(uri: str) -> tuple[str, str, str]:
    """az://container/name -> ("", container, name); abfss://container@account.host/name -> (account, ...)."""
    scheme, _, rest = uri.partition("://")
    place, _, name = rest.partition("/")
    container, _, host = place.partition("@")
    if not container or (scheme != "az" and not host):
        raise ValueError(
            f"{uri}: no container; expected az://container/name or abfss://container@account.dfs.core.windows.net/name"
        )
    return host.partition(".")[0], container, name


def blob_of(uri: str) -> Any:
    account, container, name = split(uri)
    if not name:
        raise FileNotFoundError(f"{uri} is a container, not an object")
    return client(account).get_blob_client(container, name)


def client(account: str = "") -> Any:
    setting = os.environ.get
    name = account or setting("AZURE_STORAGE_ACCOUNT") or setting("AZURE_STORAGE_ACCOUNT_NAME") or ""
    key = setting("AZURE_STORAGE_KEY") or setting("AZURE_STORAGE_ACCOUNT_KEY") or setting("AZURE_STORAGE_SAS_TOKEN")
    return client_of(setting("AZURE_STORAGE_CONNECTION_STRING") or "", name, key or "")


@per_process
def client_of(connection: str, account: str, key: str) -> Any:
    options: dict[str, Any] = {
        "retry_total": 0,  # `repeat` is more patient
        "connection_timeout": TIMEOUT[0],
        "read_timeout": TIMEOUT[1],
        "max_single_put_size": 2 * RANGE,
        "max_single_get_size": RANGE,
        "max_chunk_get_size": RANGE,
    }
    if connection:
        try:
            return BlobServiceClient.from_connection_string(connection, **options)
        except ValueError as error:
            raise ValueError(f"AZURE_STORAGE_CONNECTION_STRING: {error}") from error
    if not account:
        raise ValueError(NO_CREDENTIALS)
    return BlobServiceClient(
        f"https://{account}.blob.core.windows.net", credential=key or whoever_is_logged_in(), **options
    )


def whoever_is_logged_in() -> Any:
    try:
        from azure.identity import DefaultAzureCredential  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ValueError(f"{NO_CREDENTIALS}; logging in needs: pip install azure-identity") from error
    return DefaultAzureCredential()


NO_CREDENTIALS = (
    "az:// needs an account and found none; set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with "
    "AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or `az login`"
)


def told(uri: str, call: Callable[[], Result]) -> Result:
    """`call`, repeated while its failure may be transient; its errors in the words of `must.base.storage`."""
    try:
        return repeat(uri, call, is_transient)
    except core.ResourceNotFoundError as error:
        raise FileNotFoundError(f"{uri} does not exist") from error
    except (core.ResourceExistsError, core.ResourceModifiedError) as error:
        raise ConflictError(f"{uri} was written by another program") from error
    except core.ClientAuthenticationError as error:
        raise ValueError(f"{uri}: the server does not accept these credentials ({code_of(error)}). {LOG_IN}") from error
    except core.HttpResponseError as error:
        if error.status_code == 404:  # what has no body has no class of its own
            raise FileNotFoundError(f"{uri} does not exist") from error
        if error.status_code in (409, 412):
            raise ConflictError(f"{uri} was written by another program") from error
        if error.status_code == 403:
            raise ValueError(f"{uri}: no permission ({code_of(error)}). {LOG_IN}") from error
        raise ValueError(f"{uri}: the server refused: {code_of(error)}") from error
    except core.AzureError as error:
        raise ValueError(f"{uri}: {' '.join(str(error).split())}") from error


LOG_IN = (
    "Look at the key or the SAS token and its date, or ask for the role Storage Blob Data Contributor on the container"
)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, core.HttpResponseError):  # without a status: the connection broke in the middle of the body
        return error.status_code is None or transient_status(error.status_code)
    return isinstance(error, (core.ServiceRequestError, core.ServiceResponseError, ConnectionError))


def code_of(error: core.HttpResponseError) -> str:
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or (error.message or "").split("\n")[0] or error.status_code)
