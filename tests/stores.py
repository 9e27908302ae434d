"""An empty bucket on a real server of a store's protocol: fake-gcs-server, moto's S3, Azurite; faults in between.
`pytest --store s3 --store az` runs the tests of buckets, and no others, on those two; without it, `gs` is meant."""

import importlib
import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from must.base import storage
from must.base.storage import store as common
from tests.common import ROOT
from tests.gcs import HOST, Faults, served

numbers = itertools.count()
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account, which every Azurite has and Microsoft publishes."""


@dataclass
class Server:
    """What a test sees: `uri` is an empty bucket; `faults` are dealt out to the requests that follow, see `Faults`."""

    uri: str
    faults: Faults


@pytest.fixture(scope="session")
def moto_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Faults]]:
    pytest.importorskip("moto.server", reason="moto is not installed")
    settings = {"S3_UPLOAD_PART_MIN_SIZE": "1"}  # tests upload in smaller parts than S3's 5 MiB
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p"]
    yield from served(lambda port, _: [*command, str(port)], tmp_path_factory.mktemp("s3") / "log", **settings)


@pytest.fixture(scope="session")
def azurite_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Faults]]:
    own = ROOT / "build/azurite/node_modules/.bin/azurite-blob"
    program = str(own) if own.exists() else shutil.which("azurite-blob")
    if program is None:
        assert not os.environ.get("REQUIRE_STORES"), "no azurite-blob; npm install --prefix build/azurite azurite"
        pytest.skip("no azurite-blob; to have it: npm install --prefix build/azurite azurite")
    log = tmp_path_factory.mktemp("azure") / "log"
    command = [program, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--blobHost", HOST, "--blobPort"]
    yield from served(lambda port, _: [*command, str(port)], log)


def plant(uri: str, data: bytes) -> None:
    """Writes an object with a hostile name. Some of them cannot be made on Azure: its server refuses them."""
    try:
        storage.write_bytes(uri, data)
    except ValueError:
        if not uri.startswith("az://"):
            raise
        pytest.skip("the server refuses to make an object of this name")


@pytest.fixture
def bucket_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    return empty_bucket(request, monkeypatch, getattr(request, "param", "gs"))


def empty_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, store: str) -> Server:
    monkeypatch.setattr(common, "FIRST_PAUSE", 0.01)  # tests need not be polite
    name, process = f"bucket-{os.getpid()}-{next(numbers)}", {"gs": "gcs", "s3": "moto", "az": "azurite"}[store]
    url, faults = request.getfixturevalue(f"{process}_process")
    use_server(monkeypatch, store, url)
    client = importlib.import_module(storage.STORES[store][0]).client()
    if store == "s3":
        client.create_bucket(Bucket=name)
    else:
        (client.create_bucket if store == "gs" else client.create_container)(name)
    faults.plan, faults.requests, faults.done = [], 0, Counter()
    request.addfinalizer(lambda: setattr(faults, "plan", []))
    return Server(f"{store}://{name}", faults)


def use_server(monkeypatch: pytest.MonkeyPatch, store: str, url: str) -> None:
    """That store's is found by this process and those that it starts."""
    account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url}/{ACCOUNT};"
    settings = {
        "gs": {"STORAGE_EMULATOR_HOST": url},
        "s3": dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1")
        | {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"},
        "az": {"AZURE_STORAGE_CONNECTION_STRING": account},
    }
    for key, value in settings[store].items():
        monkeypatch.setenv(key, value)
