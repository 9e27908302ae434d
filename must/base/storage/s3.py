"""s3:// through boto3; `must.base.storage` is what the rest of the code calls.

Credentials, region and endpoint are found as every AWS tool finds them: AWS_ENDPOINT_URL points at an S3-compatible
server (MinIO, SeaweedFS, Ceph, Cloudflare R2). An object's generation is its ETag, so it changes with the content.

boto3 and not a client that serves many clouds, because it is kept by the service's owner and has what promises are
made of here: writes and deletes on condition, uploads in parts that are repeated one by one, and no threads that a
forked process would inherit. Its own retries are off: they give up after seconds, and share a budget between threads.
"""

import base64
import hashlib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3.session
import urllib3.exceptions
from botocore import exceptions as boto
from botocore.config import Config

from must.base.errors import UserError
from must.base.processes import per_process
from must.base.storage.retry import HTTP_TIMEOUTS, is_transient
from must.base.storage.store import KEY, MARK, RIGHT, Generation, Head, Place, Store, conflict, missing
from must.base.text import one_line, without_secrets


class S3(Store):
    form = "s3://bucket/name"

    def head(self, place: Place) -> Head:
        try:
            found = client().head_object(**key_of(place))
        except boto.ClientError as error:
            if http_status(error) in (400, 403):  # of expired credentials, say: the body tells, and HEAD has none
                client().get_object(**key_of(place), Range="bytes=0-0")
            raise
        return Head(int(found["ContentLength"]), found["ETag"], found.get("Metadata", {}).get(MARK))

    def page(self, place: Place, prefix: str, token: str) -> tuple[list[tuple[str, int]], str]:
        where = {"ContinuationToken": token} if token else {}
        found = client().list_objects_v2(Bucket=place.bucket, Prefix=prefix, MaxKeys=self.PAGE, **where)
        return [(one["Key"], int(one["Size"])) for one in found.get("Contents", ())], found.get(
            "NextContinuationToken", ""
        )

    def get(self, place: Place, start: int, length: int | None, generation: Generation | None) -> bytes:
        wanted = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length else {}
        try:
            return client().get_object(**key_of(place), **wanted, **condition_of(generation))["Body"].read()
        except boto.ClientError as error:
            if error_code(error) == "InvalidRange":
                return b""
            raise

    def put(self, place: Place, data: bytes, condition: Generation | None, mark: str) -> Generation:
        given = key_of(place) | condition_of(condition)
        return client().put_object(**given, Body=data, ContentMD5=md5(data), Metadata={MARK: mark})["ETag"]

    def put_parts(self, place: Place, path: Path, mark: str) -> None:
        begun = self.ask(place, lambda: client().create_multipart_upload(**key_of(place), Metadata={MARK: mark}))
        given, sent = key_of(place) | {"UploadId": begun["UploadId"]}, []
        try:
            with path.open("rb") as file:
                for number in range(1, -(-path.stat().st_size // self.RANGE) + 1):
                    part = {"PartNumber": number, **given}
                    answer = self.ask(place, partial(send_part, file.read(self.RANGE), part))
                    sent.append({"PartNumber": number, "ETag": answer["ETag"]})
            self.ask(place, lambda: client().complete_multipart_upload(**given, MultipartUpload={"Parts": sent}))
        except BaseException:
            with suppress(Exception):  # parts that are left over cost money until the bucket's own rule removes them
                client().abort_multipart_upload(**given)
            raise

    def copy_object(self, place: Place, target: Place) -> None:
        """At most 5 GB."""
        self.ask(place, lambda: client().copy_object(**key_of(target), CopySource=key_of(place)))

    def remove(self, place: Place, condition: Generation | None) -> None:
        """S3 deletes on condition; servers that ignore it are asked first, which leaves a moment for a race."""
        if condition is not None and self.head(place).generation != condition:
            raise conflict(place)
        client().delete_object(**key_of(place), **condition_of(condition))

    def no_bucket(self, place: Place) -> str:
        return (
            f" at {client().meta.endpoint_url}; check the name and AWS_ENDPOINT_URL, or make it with: "
            f"aws s3 mb s3://{place.bucket}"
        )

    def is_transient(self, error: BaseException) -> bool:
        if isinstance(error, boto.ClientError):
            return error_code(error) in BUSY or is_transient(http_status(error))
        if isinstance(error, boto.SSLError):
            return False
        lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, urllib3.exceptions.HTTPError)
        return isinstance(error, (*lost, ConnectionError))

    def refused(self, error: BaseException) -> str:
        if isinstance(error, ABOUT_CREDENTIALS):
            return KEY
        if not isinstance(error, boto.ClientError):
            return ""
        if error_code(error) in (*KEYS, *EXPIRED) or http_status(error) == 401:
            return KEY
        return RIGHT if http_status(error) == 403 else ""

    def log_in_again(self) -> None:
        client_of.drop()

    def translate(self, place: Place, error: Exception) -> Exception | None:
        uri = place.uri
        if isinstance(error, boto.ParamValidationError):
            return UserError(f"{uri}: S3 does not take this name: {one_line(error)}")
        if isinstance(error, boto.BotoCoreError):  # no credentials, an untrusted certificate, no endpoint
            hint = f". {NO_CREDENTIALS}" if isinstance(error, ABOUT_CREDENTIALS) else ""
            return UserError(f"{uri}: {one_line(error).rstrip('.')}{hint}")
        if not isinstance(error, boto.ClientError):
            return None
        code, status = error_code(error), http_status(error)
        if code in ("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404", "NotFound") or status == 404:
            return missing(place)
        if code in ("PreconditionFailed", "412") or status == 412:
            return conflict(place)
        if code == "NotImplemented" or status == 501:
            return UserError(
                f"{uri}: this server has no conditional writes (If-Match, If-None-Match), which locks and LATEST "
                "need; try a newer version"
            )
        if code in EXPIRED:
            return UserError(f"{uri}: the credentials have expired. {NO_CREDENTIALS}")
        if code in KEYS or status == 401:
            return UserError(f"{uri}: the server does not accept these credentials ({code}). {NO_CREDENTIALS}")
        if code in REGION or status == 301:
            region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
            where, value = (f"the region {region}", f"={region}") if region else ("another region", "")
            return UserError(f"{uri}: the bucket '{place.bucket}' lies in {where}; set AWS_REGION{value}")
        if status == 403:
            return UserError(
                f"{uri}: no permission ({code}); the role needs s3:ListBucket on arn:aws:s3:::{place.bucket} and "
                f"s3:GetObject, s3:PutObject, s3:DeleteObject on arn:aws:s3:::{place.bucket}/*"
            )
        return UserError(f"{uri}: the server refused: {error.response.get('Error', {}).get('Message') or code}")


STORE = S3()


def send_part(data: bytes, part: dict[str, Any]) -> dict[str, Any]:
    return client().upload_part(**part, Body=data, ContentMD5=md5(data))


def condition_of(generation: Generation | None) -> dict[str, str]:
    if generation is None:
        return {}
    return {"IfNoneMatch": "*"} if generation == 0 else {"IfMatch": str(generation)}


def key_of(place: Place) -> dict[str, str]:
    return {"Bucket": place.bucket, "Key": place.name}


def md5(data: bytes) -> str:
    """What the server checks the body with. Every S3-compatible server knows it, unlike newer checksums."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def client() -> Any:
    return client_of(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))


@per_process
def client_of(endpoint: str) -> Any:
    settings = Config(
        connect_timeout=HTTP_TIMEOUTS[0],
        read_timeout=HTTP_TIMEOUTS[1],
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=64,  # a worker's reading threads
        request_checksum_calculation="when_required",  # "when_supported" breaks older S3-compatible servers
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", config=settings, endpoint_url=endpoint or None)
    except ValueError as error:  # AWS_ENDPOINT_URL is no URL
        raise UserError(without_secrets(f"AWS_ENDPOINT_URL '{endpoint}': {error}")) from error
    except (boto.ProfileNotFound, boto.ConfigParseError, boto.PartialCredentialsError) as error:
        raise UserError(f"s3://: {error}. {NO_CREDENTIALS}") from error


NO_CREDENTIALS = (
    "s3:// needs AWS credentials; log in with `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run in a pod whose service account has a role"
)
ABOUT_CREDENTIALS = (
    boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.TokenRetrievalError,
    boto.SSOError,
)  # fmt: skip
KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "UnrecognizedClientException")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
BUSY = (
    "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict",
    "OperationAborted", "BadDigest",
)  # fmt: skip
REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")


def error_code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
