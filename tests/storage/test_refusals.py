"""What a store refuses is one line that says what to do, whichever call meets it; answers as stores document them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from must.base import storage
from must.base.storage import gcs
from tests.storage.table import BEGIN, END, PAGE, table, with_table
from tests.stores import be_impatient

HOST = "127.0.0.1"
CALLS: dict[str, Callable[[str], Any]] = {
    "read": lambda uri: storage.read_bytes(f"{uri}/name"),
    "write": lambda uri: storage.write_bytes(f"{uri}/name", b"x"),
    "list": lambda uri: list(storage.list_files(f"{uri}/folder")),
    "exists": lambda uri: storage.exists(f"{uri}/name"),
}


@contextmanager
def answering(status: int, code: str, store: str) -> Iterator[str]:
    """The address of a server that answers every request with an error in the form of that store's."""
    if store == "gs":
        body = json.dumps({"error": {"code": status, "message": code, "errors": [{"reason": code}]}}).encode()
    else:
        body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    class Refuses(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {"x-amz-bucket-region": "eu-north-1", "x-ms-error-code": code}.items():
                if (name[2:5] == "amz") == (store == "s3"):
                    self.send_header(name, value)
            self.send_header("Content-Type", "application/json" if store == "gs" else "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = handle_any  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


def refused(monkeypatch: pytest.MonkeyPatch, store: str, status: int, code: str, call: str) -> str:
    """What is said; it must be one line, and a ValueError."""
    be_impatient(monkeypatch, 1.0)
    with answering(status, code, store) as url:
        settings = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
        settings |= {"AWS_ENDPOINT_URL": url, "STORAGE_EMULATOR_HOST": url}
        key = base64.b64encode(b"key").decode()
        account = f"DefaultEndpointsProtocol=http;AccountName=acc;AccountKey={key};BlobEndpoint={url}/acc;"
        for name, value in (settings | {"AZURE_STORAGE_CONNECTION_STRING": account}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError) as error:
            CALLS[call](f"{store}://bucket")
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{store}://bucket/")
    return str(error.value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "store, status, code, message",
    [
        pytest.param("gs", 403, "forbidden", "no permission; ask for the role Storage Object User", id="no rights-gs"),
        pytest.param("s3", 403, "AccessDenied", "no permission (", id="no rights-s3"),
        pytest.param("az", 403, "AuthorizationPermissionMismatch", "no permission (", id="no rights-az"),
        pytest.param("az", 403, "AuthenticationFailed", "does not accept these credentials", id="wrong credentials-az"),
        pytest.param("s3", 400, "ExpiredToken", "the credentials have expired", id="expired credentials-s3"),
        pytest.param("s3", 301, "PermanentRedirect", "set AWS_REGION=eu-north-1", id="another region-s3"),
    ],
)
def test_a_refusal_is_one_line_whatever_was_called(
    monkeypatch: pytest.MonkeyPatch, store: str, status: int, code: str, message: str, call: str
) -> None:
    assert message in refused(monkeypatch, store, status, code, call)


@pytest.mark.parametrize("call", ["write", "list"])
@pytest.mark.parametrize(
    "store, code, message",
    [
        pytest.param("gs", "notFound", "there is no bucket 'bucket', or you may not see it", id="wrong bucket-gs"),
        pytest.param("s3", "NoSuchBucket", "there is no bucket 'bucket' at http://", id="wrong bucket-s3"),
        pytest.param("az", "ContainerNotFound", "there is no container 'bucket'", id="wrong bucket-az"),
    ],
)
def test_a_missing_bucket_is_one_line(
    monkeypatch: pytest.MonkeyPatch, store: str, code: str, message: str, call: str
) -> None:
    assert message in refused(monkeypatch, store, 404, code, call)


@pytest.mark.parametrize("call", CALLS)
def test_an_account_that_google_no_longer_knows_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    """A key file whose key was withdrawn, as an expired login: the server of tokens refuses."""
    be_impatient(monkeypatch, 1.0)
    secret = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = {"type": "service_account", "client_email": "a@b", "project_id": "p", "private_key": secret.decode()}
    with answering(400, "invalid_grant", "gs") as url:
        (tmp_path / "key.json").write_text(json.dumps(key | {"token_uri": url}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setattr(gcs, "client_of", gcs.client_of.__wrapped__)  # none that another test made
        with pytest.raises(ValueError, match="the credentials have expired or were revoked") as error:
            CALLS[call]("gs://bucket")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_page_shows_the_tests_that_there_are() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert with_table(page, table()) == page, "run: python -m tests.storage.table"
