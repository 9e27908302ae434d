"""A model in a bucket is fetched once for what it holds, whole or not at all, and loads like a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from must.api import demo
from must.base import storage
from must.method.model import hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "must" / "models"


@pytest.fixture
def bucket(bucket_server):
    """A model folder in a bucket."""
    for file in demo.asset_folder().iterdir():
        storage.upload(file, f"{bucket_server.uri}/models/tiny/{file.name}")
    return f"{bucket_server.uri}/models/tiny"


def fetched(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_it_is_fetched_once_until_it_changes(bucket, cache, capsys):
    first = hub.ensure_local(bucket)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hub.ensure_local, [bucket] * 8)) == {first}
    assert capsys.readouterr().out.count("fetching the model") == 1
    storage.write_bytes(f"{bucket}/README", b"another version")
    assert hub.ensure_local(bucket) != first and len(fetched(cache)) == 2


def test_a_checkpoint_file(bucket_server, cache):
    storage.write_bytes(f"{bucket_server.uri}/weights.pt", b"abc")
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).read_bytes() == b"abc"
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).name == "weights.pt"


def test_what_is_not_there_is_said_and_what_breaks_off_leaves_nothing(bucket, cache, bucket_server, monkeypatch):
    with pytest.raises(ValueError, match="there is no model"):
        hub.ensure_local(f"{bucket_server.uri}/nothing")
    monkeypatch.setattr(storage, "download", lambda uri, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.ensure_local(bucket)
    assert fetched(cache) == []
