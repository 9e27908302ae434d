"""az:// and abfss:// through azure-storage-blob. Other code calls `must.base.storage`, not this module.

For az://CONTAINER/NAME the account comes from the environment, as for Azure's own command line:
AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN. Without a
key or token the credentials are those of azure-identity (`az login`, a workload's identity).
abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/NAME contains the account. An object's generation is its ETag."""

import base64
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from azure.core import MatchConditions
from azure.core import exceptions as core
from azure.storage.blob import BlobBlock, BlobServiceClient

from must.base.errors import UserError
from must.base.processes import per_process
from must.base.storage.store import HTTP_TIMEOUTS, MARK, Entry, Generation, Head, Location, Store
from must.base.text import make_one_line, remove_secrets


class Azure(Store):
    bucket = "container"
    form = "az://container/name or abfss://container@account.dfs.core.windows.net/name"
    log_in = (
        "Look at the key or the SAS token and its date, or ask for the role Storage Blob Data Contributor on the "
        "container"
    )
    rights = f"{log_in[0].lower()}{log_in[1:]}"
    lost = (core.ServiceRequestError, core.ServiceResponseError, ConnectionError)
    refusing = (core.ClientAuthenticationError,)

    def head(self, location: Location) -> Head:
        properties = get_blob(location).get_blob_properties()
        return Head(int(properties.size), str(properties.etag), (properties.metadata or {}).get(MARK))

    def page(self, location: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """Leaves out folders, which accounts with a hierarchical namespace store as objects."""
        container = client(location.account).get_container_client(location.bucket)
        listing = container.list_blobs(name_starts_with=prefix, include=["metadata"], results_per_page=self.PAGE)
        pages = listing.by_page(token or None)
        blobs = [blob for blob in next(pages, ()) if not (blob.metadata or {}).get("hdi_isfolder")]
        return [Entry(blob.name, int(blob.size), str(blob.etag)) for blob in blobs], pages.continuation_token or ""

    def get(self, location: Location, start: int, length: int | None, generation: Generation | None) -> bytes:
        return get_blob(location).download_blob(start, length, **make_condition(generation)).readall()

    def put(self, location: Location, data: bytes, condition: Generation | None, mark: str) -> Generation:
        options = {"overwrite": condition != 0, "metadata": {MARK: mark}, "validate_content": True}
        return str(get_blob(location).upload_blob(data, **options, **make_condition(condition))["etag"])

    def put_parts(self, location: Location, path: Path, mark: str) -> None:
        """Azure deletes blocks that were never committed after a week."""
        count = -(-path.stat().st_size // self.RANGE)
        names = [base64.b64encode(f"{mark}-{number:06d}".encode()).decode() for number in range(count)]
        blob = get_blob(location)
        with path.open("rb") as file:
            for name in names:
                self.ask(location, partial(blob.stage_block, name, file.read(self.RANGE), validate_content=True))
        self.ask(location, lambda: blob.commit_block_list([BlobBlock(name) for name in names], metadata={MARK: mark}))

    def copy_object(self, source: Location, target: Location) -> None:
        destination = get_blob(target)
        state = self.ask(source, lambda: destination.start_copy_from_url(get_blob(source).url))["copy_status"]
        while state == "pending":
            time.sleep(0.2)
            state = self.ask(target, destination.get_blob_properties).copy.status
        if state != "success":
            raise UserError(f"{source.uri}: the server could not copy it to {target.uri} ({state})")

    def remove(self, location: Location) -> None:
        get_blob(location).delete_blob()

    def split(self, uri: str) -> Location:
        """Also parses abfss://container@account.host/name."""
        scheme, _, path = uri.partition("://")
        if scheme == "az":
            return super().split(uri)
        authority, _, name = path.partition("/")
        container, _, host = authority.partition("@")
        if not container or not host:
            raise UserError(f"{uri}: no container; expected {self.form}")
        return Location(uri, container, name, host.partition(".")[0])

    def no_bucket(self, location: Location) -> str:
        command = f"az storage container create --name {location.bucket}"
        return f"; check the name and the account, or make it with: {command}"

    def read_error(self, error: BaseException) -> tuple[int | None, str]:
        """By status: an error without a body has no class of its own."""
        if not isinstance(error, core.HttpResponseError):
            return None, ""
        code = getattr(error, "error_code", None)
        return error.status_code, str(getattr(code, "value", code) or (error.message or "").split("\n")[0])

    def is_transient(self, error: BaseException) -> bool:
        broken = isinstance(error, core.HttpResponseError) and error.status_code is None  # during the body
        return broken or super().is_transient(error)

    def translate(self, location: Location, error: Exception) -> Exception | None:
        if isinstance(error, core.AzureError) and not isinstance(error, core.HttpResponseError):
            return UserError(f"{location.uri}: {make_one_line(error)}")
        return super().translate(location, error)


def make_condition(generation: Generation | None) -> dict[str, Any]:
    """Options for "only if the object has this ETag". "Only if it does not exist" (0) is the option `overwrite`."""
    if generation is None or generation == 0:
        return {}
    return {"etag": str(generation), "match_condition": MatchConditions.IfNotModified}


def get_blob(location: Location) -> Any:
    return client(location.account).get_blob_client(location.bucket, location.name)


def client(account: str = "") -> Any:
    setting = os.environ.get
    name = account or setting("AZURE_STORAGE_ACCOUNT") or setting("AZURE_STORAGE_ACCOUNT_NAME") or ""
    key = setting("AZURE_STORAGE_KEY") or setting("AZURE_STORAGE_ACCOUNT_KEY") or setting("AZURE_STORAGE_SAS_TOKEN")
    return make_client(setting("AZURE_STORAGE_CONNECTION_STRING") or "", name, key or "")


@per_process
def make_client(connection: str, account: str, key: str) -> Any:
    options: dict[str, Any] = {
        "retry_total": 0,  # `repeat` retries for longer
        "connection_timeout": HTTP_TIMEOUTS[0],
        "read_timeout": HTTP_TIMEOUTS[1],
        "max_single_put_size": 2 * Store.RANGE,
        "max_single_get_size": Store.RANGE,
        "max_chunk_get_size": Store.RANGE,
    }
    if connection:
        try:
            return BlobServiceClient.from_connection_string(connection, **options)
        except ValueError as error:
            raise UserError(remove_secrets(f"AZURE_STORAGE_CONNECTION_STRING: {error}")) from error
    if not account:
        raise UserError(NO_CREDENTIALS)
    return BlobServiceClient(f"https://{account}.blob.core.windows.net", credential=key or find_credential(), **options)


def find_credential() -> Any:
    try:
        from azure.identity import DefaultAzureCredential  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(f"{NO_CREDENTIALS}; logging in needs: pip install azure-identity") from error
    return DefaultAzureCredential()


NO_CREDENTIALS = (
    "az:// needs an account and found none; set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with "
    "AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or `az login`"
)

STORE = Azure(make_client)
