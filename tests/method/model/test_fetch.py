"""A model in a bucket is fetched once for what it holds, whole or not at all, and loads like a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from must.api import demo
from must.base import storage
from must.method.model import hub
from must.method.model.backbone import load_backbone


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "must" / "models"


@pytest.fixture
def bucket(bucket_server):
    """A model folder, and the same in a bucket."""
    folder = demo.asset_folder()
    for file in folder.iterdir():
        storage.upload(file, f"{bucket_server.uri}/models/tiny/{file.name}")
    return folder, f"{bucket_server.uri}/models/tiny"


def fetched(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_a_model_in_a_bucket_is_the_same_as_in_a_folder(bucket, cache):
    folder, uri = bucket
    ours, theirs = load_backbone(str(folder)), load_backbone(uri)
    assert (theirs.model, theirs.architecture) == (uri, ours.architecture)
    for name, value in ours.clip.state_dict().items():
        assert torch.equal(value, theirs.clip.state_dict()[name])


def test_it_is_fetched_once_until_it_changes(bucket, cache, capsys):
    _, uri = bucket
    first = hub.ensure_local(uri)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hub.ensure_local, [uri] * 8)) == {first}
    assert capsys.readouterr().out.count("fetching the model") == 1
    storage.write_bytes(f"{uri}/README", b"another version")
    assert hub.ensure_local(uri) != first and len(fetched(cache)) == 2


def test_a_checkpoint_file(bucket_server, cache):
    storage.write_bytes(f"{bucket_server.uri}/weights.pt", b"abc")
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).read_bytes() == b"abc"
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).name == "weights.pt"


def test_what_is_not_there_is_said_and_what_breaks_off_leaves_nothing(bucket, cache, bucket_server, monkeypatch):
    with pytest.raises(ValueError, match="there is no model"):
        hub.ensure_local(f"{bucket_server.uri}/nothing")
    monkeypatch.setattr(storage, "download", lambda uri, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.ensure_local(bucket[1])
    assert fetched(cache) == []


@pytest.mark.parametrize("name", ["", "ViT-B-16", "/models/tiny", "hf-hub:a/b", "local-dir:x"])
def test_other_places_are_left_alone(name):
    assert hub.ensure_local(name) == name
