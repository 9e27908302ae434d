"""s3:// through boto3. Other code calls `must.base.storage`, not this module.

Credentials, region and endpoint come from the usual AWS settings; AWS_ENDPOINT_URL sets an S3-compatible server
(MinIO, SeaweedFS, Ceph, Cloudflare R2). An object's generation is its ETag, which changes with the content.

boto3's own retries are off: they stop after seconds, and threads share one retry budget."""

import base64
import hashlib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3.session
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto
from botocore.config import Config

from must.base.errors import UserError
from must.base.processes import LONGEST_END, DaemonThreads, per_process
from must.base.storage.store import HTTP_TIMEOUTS, MARK, ConflictError, Entry, Generation, Head, Location, Store
from must.base.text import make_one_line, remove_secrets

NO_CREDENTIALS = (
    "s3:// needs AWS credentials; log in with `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run in a pod whose service account has a role"
)
BUSY = ("RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "BadDigest")  # with a status 400 or 409
WRONG_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


class S3(Store):
    LARGEST_COPY = 5_000_000_000  # bytes
    form = "s3://bucket/name"
    log_in = NO_CREDENTIALS
    rights = (
        "the role needs s3:ListBucket on arn:aws:s3:::{bucket} and s3:GetObject, s3:PutObject, s3:DeleteObject on "
        "arn:aws:s3:::{bucket}/*"
    )
    lost = (
        boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, urllib3.exceptions.HTTPError,
        ConnectionError,
    )  # fmt: skip
    refusing = (
        boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.TokenRetrievalError,
        boto.SSOError,
    )  # fmt: skip
    refusing_codes = (
        "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "UnrecognizedClientException",
        "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired",
    )  # fmt: skip

    def head(self, location: Location) -> Head:
        try:
            response = client().head_object(**find_key(location))
        except boto.ClientError as error:
            if self.read_error(error)[0] in (400, 403):  # the reason is in a body, which HEAD has not
                client().get_object(**find_key(location), Range="bytes=0-0")
            raise
        return Head(int(response["ContentLength"]), response["ETag"], response.get("Metadata", {}).get(MARK))

    def page(self, location: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        options = {"ContinuationToken": token} if token else {}
        response = client().list_objects_v2(Bucket=location.bucket, Prefix=prefix, MaxKeys=self.PAGE, **options)
        objects = [
            Entry(item["Key"], int(item["Size"]), item["ETag"].strip('"')) for item in response.get("Contents", ())
        ]
        return objects, response.get("NextContinuationToken", "")

    def get(self, location: Location, start: int, length: int | None, generation: Generation | None) -> bytes:
        options = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length else {}
        return client().get_object(**find_key(location), **options, **make_condition(generation))["Body"].read()

    def put(self, location: Location, data: bytes, condition: Generation | None, mark: str) -> Generation:
        options = find_key(location) | make_condition(condition)
        try:
            return client().put_object(**options, Body=data, ContentMD5=compute_md5(data), Metadata={MARK: mark})[
                "ETag"
            ]
        except boto.ClientError as error:
            if self.read_error(error)[1] == "NoSuchKey":  # S3's answer to If-Match where there is no object
                raise ConflictError(f"{location.uri} was deleted by another program") from error
            raise

    def put_parts(self, location: Location, path: Path, mark: str) -> None:
        begun = self.ask(
            location, lambda: client().create_multipart_upload(**find_key(location), Metadata={MARK: mark})
        )
        upload, parts = find_key(location) | {"UploadId": begun["UploadId"]}, []
        try:
            with path.open("rb") as file:
                for number in range(1, -(-path.stat().st_size // self.RANGE) + 1):
                    part = {"PartNumber": number, **upload}
                    response = self.ask(location, partial(send_part, file.read(self.RANGE), part))
                    parts.append({"PartNumber": number, "ETag": response["ETag"]})
            self.ask(location, lambda: client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}))
        except BaseException:
            with suppress(Exception):  # without this, the parts cost money until a rule of the bucket deletes them
                DaemonThreads().submit(client().abort_multipart_upload, **upload).result(LONGEST_END)
            raise

    def copy_object(self, source: Location, target: Location) -> None:
        """In the bucket; in parts above 5 GB, which one request cannot copy."""
        if self.ask(source, lambda: self.head(source)).size <= self.LARGEST_COPY:
            self.ask(source, lambda: client().copy_object(**find_key(target), CopySource=find_key(source)))
            return
        parts = TransferConfig(multipart_threshold=self.LARGEST_COPY, multipart_chunksize=self.LARGEST_COPY // 10)
        self.ask(source, lambda: client().copy(find_key(source), **find_key(target), Config=parts))

    def remove(self, location: Location) -> None:
        client().delete_object(**find_key(location))

    def no_bucket(self, location: Location) -> str:
        return (
            f" at {client().meta.endpoint_url}; check the name and AWS_ENDPOINT_URL, or make it with: "
            f"aws s3 mb s3://{location.bucket}"
        )

    def read_error(self, error: BaseException) -> tuple[int | None, str]:
        if not isinstance(error, boto.ClientError):
            return None, ""
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status), str(error.response.get("Error", {}).get("Code", ""))

    def is_transient(self, error: BaseException) -> bool:
        if isinstance(error, boto.SSLError):
            return False
        return super().is_transient(error) or self.read_error(error)[1] in BUSY

    def translate(self, location: Location, error: Exception) -> Exception | None:
        uri, (status, code) = location.uri, self.read_error(error)
        if isinstance(error, boto.ParamValidationError):
            return UserError(f"{uri}: S3 rejects this name: {make_one_line(error)}")
        if isinstance(error, boto.BotoCoreError):  # no credentials, an untrusted certificate, no endpoint
            hint = f". {NO_CREDENTIALS}" if isinstance(error, self.refusing) else ""
            return UserError(f"{uri}: {make_one_line(error).rstrip('.')}{hint}")
        if code == "RequestTimeTooSkewed":
            return UserError(f"{uri}: the clock of this machine differs from the server's; set it")
        if status == 501:
            return UserError(
                f"{uri}: this server has no conditional writes (If-Match, If-None-Match), which locks and LATEST "
                "need; try a newer version"
            )
        if isinstance(error, boto.ClientError) and (code in WRONG_REGION or status == 301):
            region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
            return UserError(f"{uri}: the bucket lies in another region; set AWS_REGION={region or '...'}")
        return super().translate(location, error)


def send_part(data: bytes, part: dict[str, Any]) -> dict[str, Any]:
    return client().upload_part(**part, Body=data, ContentMD5=compute_md5(data))


def make_condition(generation: Generation | None) -> dict[str, str]:
    if generation is None:
        return {}
    return {"IfNoneMatch": "*"} if generation == 0 else {"IfMatch": str(generation)}


def find_key(location: Location) -> dict[str, str]:
    return {"Bucket": location.bucket, "Key": location.name}


def compute_md5(data: bytes) -> str:
    """The checksum with which the server verifies the body. All S3-compatible servers have it, unlike newer ones."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def client() -> Any:
    return make_client(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))


@per_process
def make_client(endpoint: str) -> Any:
    settings = Config(
        connect_timeout=HTTP_TIMEOUTS[0],
        read_timeout=HTTP_TIMEOUTS[1],
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=64,  # the reader threads of a worker
        request_checksum_calculation="when_required",  # "when_supported" breaks older S3-compatible servers
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", config=settings, endpoint_url=endpoint or None)
    except ValueError as error:  # AWS_ENDPOINT_URL is no URL
        raise UserError(remove_secrets(f"AWS_ENDPOINT_URL '{endpoint}': {error}")) from error
    except (boto.ProfileNotFound, boto.ConfigParseError, boto.PartialCredentialsError) as error:
        raise UserError(f"s3://: {error}. {NO_CREDENTIALS}") from error


STORE = S3(make_client)
