"""What a store refuses is one line that says what to do, whichever call meets it; answers as stores document them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from must.base import storage
from must.base.storage import gcs
from must.base.storage import store as common
from tests.local_server import Answer, Request, serving
from tests.stores import empty_bucket, use_server

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
    headers = {"s3": {"x-amz-bucket-region": "eu-north-1"}, "az": {"x-ms-error-code": code}}.get(store, {})
    kind = "application/json" if store == "gs" else "application/xml"
    with serving(lambda _: Answer(status, body, headers | {"Content-Type": kind})) as url:
        yield url


def refused(
    monkeypatch: pytest.MonkeyPatch, store: str, status: int, code: str, call: str,
    kind: type[ValueError] = ValueError, patience: float = 1.0,
) -> str:  # fmt: skip
    """What is said; it must be one line, and of that kind."""
    monkeypatch.setattr(common, "RETRY_TIMEOUT", patience)
    with answering(status, code, store) as url:
        use_server(monkeypatch, store, url)
        with pytest.raises(kind) as error:
            CALLS[call](f"{store}://bucket")
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{store}://bucket/")
    return str(error.value)


REFUSALS = [
    ("gs", 403, "forbidden", "no permission; ask for the role Storage Object User"),
    ("s3", 403, "AccessDenied", "no permission ("),
    ("az", 403, "AuthorizationPermissionMismatch", "no permission ("),
    ("s3", 403, "InvalidAccessKeyId", "does not accept these credentials"),
    ("az", 403, "AuthenticationFailed", "does not accept these credentials"),
    ("s3", 400, "ExpiredToken", "these credentials (ExpiredToken)"),
    ("s3", 301, "PermanentRedirect", "set AWS_REGION=eu-north-1"),
    ("s3", 400, "AuthorizationHeaderMalformed", "set AWS_REGION=eu-north-1"),
    ("s3", 403, "RequestTimeTooSkewed", "the clock of this machine differs from the server's"),
    ("s3", 501, "NotImplemented", "has no conditional writes"),
    ("gs", 404, "notFound", "there is no bucket 'bucket', or you may not see it"),
    ("s3", 404, "NoSuchBucket", "there is no bucket 'bucket' at http://"),
    ("az", 404, "ContainerNotFound", "there is no container 'bucket'"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("store, status, code, message", REFUSALS, ids=lambda value: str(value)[:20])
def test_a_refusal_is_one_line_whatever_was_called(monkeypatch, store, status, code, message, call):
    if status != 404 or call in ("write", "list"):  # a missing object, else
        assert message in refused(monkeypatch, store, status, code, call)


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("store", ["gs", "s3", "az"])
def test_a_store_that_is_waited_for_is_said_once_a_minute(monkeypatch, caplog, store, call):
    monkeypatch.setattr(common, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(common, "SILENT", 0.05)
    monkeypatch.setattr(common.Waiting, "last", -common.LINE_PAUSE)
    for _ in range(2):
        refused(monkeypatch, store, 503, "SlowDown", call, storage.TransientError, patience=0.2)
    (line,) = caplog.messages
    assert line.startswith(f"{store}://bucket/") and "no answer yet (" in line and "repeated for up to 0.2 s" in line


@pytest.mark.parametrize("call", CALLS)
def test_a_key_google_no_longer_knows_is_one_line(monkeypatch, tmp_path, call):
    """A key file whose key was withdrawn, as an expired login: the server of tokens refuses."""
    monkeypatch.setattr(common, "RETRY_TIMEOUT", 1.0)
    secret = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = {"type": "service_account", "client_email": "a@b", "project_id": "p", "private_key": secret.decode()}
    with answering(400, "invalid_grant", "gs") as url:
        (tmp_path / "key.json").write_text(json.dumps(key | {"token_uri": url}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setattr(gcs, "make_client", gcs.make_client.__wrapped__)  # none that another test made
        with pytest.raises(ValueError, match=r"\A.*does not accept these credentials.*\Z"):
            CALLS[call]("gs://bucket")


def test_a_damaged_key_file_is_called_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "key.json").write_text('{"type": "service_acc')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(ValueError, match=rf"\AGOOGLE_APPLICATION_CREDENTIALS {tmp_path}/key.json: .* valid json"):
        gcs.make_client.__wrapped__("")


@pytest.mark.parametrize(
    "status, store",
    [
        ("403", "gs"),  # on a 401 Google's client asks for another token first, which the emulator's account has not
        *(("401", "s3"), ("403", "s3")),
        *(pytest.param(status, "az", marks=pytest.mark.slow) for status in ("401", "403")),
    ],
)
def test_credentials_that_are_refused_for_a_while_are_waited_for_where_the_run_has_worked(
    request, monkeypatch, status, store
):
    server = empty_bucket(request, monkeypatch, store)
    work = f"{server.uri}/work"
    monkeypatch.setenv(common.RETRY_AUTH_ERRORS_AT, "")
    storage.wait_for_credentials(work, "")
    storage.write_bytes(f"{work}/name", b"x" * 10)
    server.faults.plan = [status, status, "", status, "", "", status]
    for _ in range(4):
        assert storage.read_bytes(f"{work}/name") == b"x" * 10 and storage.size(f"{work}/name") == 10
        storage.write_bytes(f"{work}/other", b"y")
        assert [entry.name for entry in storage.list_files(work)] == ["name", "other"]
        storage.delete(f"{work}/other")
    assert server.faults.done[status] > 8


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "store, status, code",
    [
        ("gs", 403, "forbidden"), ("s3", 403, "InvalidAccessKeyId"), ("s3", 400, "ExpiredToken"),
        ("az", 403, "AuthenticationFailed"), ("az", 401, "NoAuthenticationInformation"),
    ],
)  # fmt: skip
def test_credentials_that_stay_refused_where_they_have_worked_are_transient(monkeypatch, store, status, code, call):
    monkeypatch.setenv(common.RETRY_AUTH_ERRORS_AT, f"{store}://bucket")
    said = refused(monkeypatch, store, status, code, call, storage.TransientError, patience=0.05)
    assert said.endswith("credentials worked before, and were tried for minutes; run this again when they work")


@pytest.mark.parametrize("store", ["gs", "s3", pytest.param("az", marks=pytest.mark.slow)])
def test_a_right_that_was_never_there_is_not_waited_for(request, monkeypatch, store):
    """What is beside the proven place, also where its name begins with the same letters; a key never seen to work."""
    server = empty_bucket(request, monkeypatch, store)
    monkeypatch.setenv(common.RETRY_AUTH_ERRORS_AT, "")
    storage.wait_for_credentials(f"{server.uri}/work")
    storage.write_bytes(f"{server.uri}/work/name", b"x")
    server.faults.plan = ["403"]
    for beside in ("source/name", "work-2/name"):
        with pytest.raises(ValueError, match="no permission") as error:
            storage.read_bytes(f"{server.uri}/{beside}")
        assert not isinstance(error.value, storage.TransientError)


def test_a_key_renewed_while_the_program_runs_is_read_again(monkeypatch, tmp_path):
    """A file of keys in a mounted Secret, which a company replaces; the server knows the new key alone from then on."""
    accepted = ["AKIDOLD"]

    def answer(request: Request) -> Answer:
        if f"Credential={accepted[0]}/" in request.headers.get("Authorization", ""):
            return Answer(200, b"data")
        return Answer(403, b"<Error><Code>InvalidAccessKeyId</Code><Message>no</Message></Error>")

    def keys(name: str) -> None:
        (tmp_path / "keys").write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = x\n")

    with serving(answer) as url:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr("must.base.storage.store.LOGIN_PAUSE", 0.1)
        keys("AKIDOLD")
        assert storage.read_bytes("s3://bucket/name") == b"data"
        accepted[0] = "AKIDNEW"
        Timer(1.0, keys, ["AKIDNEW"]).start()
        assert storage.read_bytes("s3://bucket/name") == b"data"
