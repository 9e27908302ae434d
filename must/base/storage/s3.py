"""s3:// through boto3; `must.base.storage` is what the rest of the code calls.

Credentials, region and endpoint are found as every AWS tool finds them: AWS_ENDPOINT_URL points at an S3-compatible
server (MinIO, SeaweedFS, Ceph, Cloudflare R2). An object's generation is its ETag, so it changes with the content.

boto3 and not a client that serves many clouds, because it alone is kept by the service's owner and has what promises
are made of here: conditional writes, uploads in parts that are repeated one by one, and no threads that a forked
process would inherit. Its own retries are off: they give up after seconds, and share a budget between threads.
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import boto3.session
import urllib3.exceptions
from botocore import exceptions as boto
from botocore.config import Config

from must.base.processes import per_process
from must.base.storage.base import ConflictError, Entry, Generation, Stat
from must.base.storage.retry import TIMEOUT, repeat
from must.base.storage.retry import is_transient as transient_status

Result = TypeVar("Result")
PAGE = 1000  # names of one request of a listing
RANGE = 32 << 20  # bytes of one request of a download or an upload; S3 takes up to 10,000 parts: 320 GB
MARK = "must-write"  # metadata that says which write an object came from


def stat(uri: str) -> Stat:
    try:
        found = ask(uri, "head_object", **place_of(uri))
    except ValueError as error:
        # What is refused as a bad request, of expired credentials for instance, is told in a body: HEAD has none.
        if isinstance(error.__cause__, boto.ClientError) and status_of(error.__cause__) == 400:
            read_bytes(uri, 0, 1)
        raise
    return Stat(int(found["ContentLength"]), found["ETag"])


def list_files(uri: str) -> Iterator[Entry]:
    """One page at a time. Placeholders of folders (names that end with "/") are left out."""
    bucket, prefix = split(uri)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    where: dict[str, str] = {}
    while True:
        with needing_bucket(uri):
            page = ask(uri, "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE, **where)
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield Entry(found["Key"][len(prefix) :], int(found["Size"]))
        if not page.get("IsTruncated"):
            return
        where = {"ContinuationToken": page["NextContinuationToken"]}


def read_bytes(uri: str, start: int = 0, length: int | None = None, generation: Generation | None = None) -> bytes:
    if length == 0:
        return b""
    wanted = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length else {}
    if generation is not None:
        wanted["IfMatch"] = str(generation)

    def read() -> bytes:
        try:
            return client().get_object(**place_of(uri), **wanted)["Body"].read()
        except boto.ClientError as error:
            if code_of(error) == "InvalidRange":  # at or after the end, or an empty object: as a local file does
                return b""
            raise

    return told(uri, read)


def write_bytes(uri: str, data: bytes, if_generation_match: Generation | None = None) -> str:
    """Returns the new object's generation."""
    mark, condition = uuid.uuid4().hex, condition_of(if_generation_match)
    with needing_bucket(uri):
        try:
            return ask(
                uri,
                "put_object",
                **place_of(uri),
                **condition,
                Body=data,
                ContentMD5=md5(data),
                Metadata={MARK: mark},
            )["ETag"]
        except ConflictError:
            if generation := written_by(uri, mark):
                return generation
            raise


def upload(path: Path, uri: str) -> None:
    """Files larger than RANGE go in parts, each of which is repeated by itself."""
    if path.stat().st_size <= RANGE:
        write_bytes(uri, path.read_bytes())
        return
    mark = uuid.uuid4().hex
    with needing_bucket(uri):
        begun = ask(uri, "create_multipart_upload", **place_of(uri), Metadata={MARK: mark})
    place = place_of(uri) | {"UploadId": begun["UploadId"]}
    try:
        parts = list(send_parts(path, uri, place))
        ask(uri, "complete_multipart_upload", **place, MultipartUpload={"Parts": parts})
    except BaseException as error:
        # Completing may have been carried out while its answer was lost; then there is no such upload any more.
        if isinstance(error, FileNotFoundError) and written_by(uri, mark):
            return
        with suppress(Exception):  # parts that are left over cost money until the bucket's own rule removes them
            client().abort_multipart_upload(**place)
        raise


def send_parts(path: Path, uri: str, place: dict[str, str]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number in range(1, -(-path.stat().st_size // RANGE) + 1):
            data = file.read(RANGE)
            sent = ask(uri, "upload_part", **place, PartNumber=number, Body=data, ContentMD5=md5(data))
            yield {"PartNumber": number, "ETag": sent["ETag"]}


def copy(uri: str, target: str) -> None:
    """On the server; at most 5 GB."""
    ask(uri, "copy_object", **place_of(target), CopySource=place_of(uri))


def delete(uri: str, if_generation_match: Generation | None = None) -> None:
    """S3 deletes on condition; servers that ignore the condition are asked first, which leaves a moment for a race."""
    with suppress(FileNotFoundError):
        if if_generation_match is None:
            ask(uri, "delete_object", **place_of(uri))
            return
        if stat(uri).generation != if_generation_match:
            raise ConflictError(f"{uri} was written by another program")
        ask(uri, "delete_object", **place_of(uri), IfMatch=str(if_generation_match))


def condition_of(generation: Generation | None) -> dict[str, str]:
    if generation is None:
        return {}
    return {"IfNoneMatch": "*"} if generation == 0 else {"IfMatch": str(generation)}


def written_by(uri: str, mark: str) -> str | None:
    """The object's generation if it came from the write of that mark: a first try arrived and its answer got lost."""
    with suppress(FileNotFoundError):
        found = ask(uri, "head_object", **place_of(uri))
        if found.get("Metadata", {}).get(MARK) == mark:
            return found["ETag"]
    return None


@contextmanager
def needing_bucket(uri: str) -> Iterator[None]:
    """Listing and writing find no object missing: then it is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        bucket, _ = split(uri)
        raise ValueError(
            f"{uri}: there is no bucket '{bucket}' at {client().meta.endpoint_url}; check the name and "
            f"AWS_ENDPOINT_URL, or make it with: aws s3 mb s3://{bucket}"
        ) from error


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/name -> (bucket, name)."""
    bucket, _, name = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: no bucket; expected s3://bucket/name")
    return bucket, name


def place_of(uri: str) -> dict[str, str]:
    bucket, name = split(uri)
    if not name:
        raise FileNotFoundError(f"{uri} is a bucket, not an object")
    return {"Bucket": bucket, "Key": name}


def md5(data: bytes) -> str:
    """What the server checks the body with. Every S3-compatible server knows it, unlike newer checksums."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def client() -> Any:
    return client_of(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))


@per_process
def client_of(endpoint: str) -> Any:
    settings = Config(
        connect_timeout=TIMEOUT[0],
        read_timeout=TIMEOUT[1],
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=64,  # a worker's reading threads
        request_checksum_calculation="when_required",  # "when_supported" breaks older S3-compatible servers
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", config=settings, endpoint_url=endpoint or None)
    except ValueError as error:  # AWS_ENDPOINT_URL is no URL
        raise ValueError(f"AWS_ENDPOINT_URL '{endpoint}': {error}") from error
    except (boto.ProfileNotFound, boto.ConfigParseError, boto.PartialCredentialsError) as error:
        raise ValueError(f"s3://: {error}. {NO_CREDENTIALS}") from error


NO_CREDENTIALS = (
    "s3:// needs AWS credentials; log in with `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run in a pod whose service account has a role"
)
ABOUT_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "UnrecognizedClientException")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")


def ask(uri: str, operation: str, **parameters: Any) -> dict[str, Any]:
    return told(uri, lambda: getattr(client(), operation)(**parameters))


def told(uri: str, call: Callable[[], Result]) -> Result:
    """`call`, repeated while its failure may be transient; its errors in the words of `must.base.storage`."""
    try:
        return repeat(uri, call, is_transient)
    except boto.ClientError as error:
        raise in_words(uri, error) from error
    except boto.ParamValidationError as error:
        raise ValueError(f"{uri}: S3 does not take this name: {' '.join(str(error).split())}") from error
    except boto.BotoCoreError as error:  # no credentials, expired ones, a certificate that is not trusted, no endpoint
        hint = f". {NO_CREDENTIALS}" if isinstance(error, ABOUT_CREDENTIALS) else ""
        raise ValueError(f"{uri}: {' '.join(str(error).split()).rstrip('.')}{hint}") from error


def in_words(uri: str, error: boto.ClientError) -> Exception:
    code, status = code_of(error), status_of(error)
    bucket, _ = split(uri)
    if code in ("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404", "NotFound") or status == 404:
        return FileNotFoundError(f"{uri} does not exist")
    if code in ("PreconditionFailed", "412") or status == 412:
        return ConflictError(f"{uri} was written by another program")
    if code == "NotImplemented" or status == 501:
        return ValueError(
            f"{uri}: this server does not write on condition (If-Match, If-None-Match), which locks and LATEST rest "
            "on; a newer version of it may"
        )
    if code in EXPIRED:
        return ValueError(f"{uri}: the credentials have expired. {NO_CREDENTIALS}")
    if code in KEYS or status == 401:
        return ValueError(f"{uri}: the server does not accept these credentials ({code}). {NO_CREDENTIALS}")
    if code in REGION or status == 301:
        region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        return ValueError(
            f"{uri}: the bucket '{bucket}' lies in {f'the region {region}' if region else 'another region'}; "
            f"set AWS_REGION{f'={region}' if region else ''}"
        )
    if status == 403:
        return ValueError(
            f"{uri}: no permission ({code}); the role needs s3:ListBucket on arn:aws:s3:::{bucket} and s3:GetObject, "
            f"s3:PutObject, s3:DeleteObject on arn:aws:s3:::{bucket}/*"
        )
    return ValueError(f"{uri}: the server refused: {error.response.get('Error', {}).get('Message') or code}")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, boto.ClientError):
        busy = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict")
        return code_of(error) in (*busy, "OperationAborted", "BadDigest") or transient_status(status_of(error))
    if isinstance(error, boto.SSLError):
        return False
    lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, urllib3.exceptions.HTTPError)
    return isinstance(error, (*lost, ConnectionError))


def code_of(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
