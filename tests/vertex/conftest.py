"""The tests of Vertex AI Pipelines that need Google's client: make test-vertex."""

import json
import os

import pytest

from must_pipeline.vertex.placement import is_installed

if not os.environ.get("REQUIRE_VERTEX") and not is_installed("google.cloud.aiplatform"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def account(tmp_path_factory):
    """A key file of a service account, as Google's client reads it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"type": "service_account", "private_key_id": "1", "private_key": key.decode(), "project_id": "my-project",
            "client_email": "must@my-project.iam.gserviceaccount.com"}  # fmt: skip


@pytest.fixture
def server(account, tmp_path, monkeypatch):
    from tests.vertex.vertex_server import VertexServer

    server = VertexServer()
    (tmp_path / "key.json").write_text(json.dumps({**account, "token_uri": "http://127.0.0.1:9"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    yield server
    server.stop()
