"""`must push --repo oci:FOLDER`: an image's layout, read back by the rules of the OCI image specification."""

import hashlib
import json
import tarfile

import pytest

from must.config import PushConfig
from must.deploy.export.push import push
from tests.deploy.export.conftest import files_up_to
from tests.deploy.promote.bundles import make_onnx


@pytest.fixture
def model(tmp_path):
    (folder := tmp_path / "onnx").mkdir()
    make_onnx(folder / "model.onnx")
    (folder / "README.md").write_text("# colours")
    (folder / "more").mkdir()
    (folder / "more" / ("n" * 120)).write_bytes(b"a name longer than tar's own hundred characters")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("hidden")
    return folder


def blob(layout, described):
    data = (layout / "blobs" / "sha256" / described["digest"].removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == described["digest"] and len(data) == described["size"]
    return data


def test_what_is_read_back_is_the_folder_below_models(model, tmp_path):
    layout = tmp_path / "made" / "image"
    digest = push(PushConfig(model=str(model), repo=f"oci:{layout}"))
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (found,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert found["digest"] == digest and found["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    manifest = json.loads(blob(layout, found))
    config, (layer,) = json.loads(blob(layout, manifest["config"])), manifest["layers"]
    blob(layout, layer)
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"]]}  # not compressed: one digest
    assert len(list((layout / "blobs" / "sha256").iterdir())) == 3
    with tarfile.open(layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")) as tar:
        members = tar.getmembers()
        held = {one.name: tar.extractfile(one).read() for one in members if one.isfile()}
    files = [path for path in model.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert held == {f"models/{path.relative_to(model)}": path.read_bytes() for path in files}
    assert members[0].isdir() and {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, 0)}


def test_the_same_files_are_the_same_image(model, tmp_path):
    first, again = (push(PushConfig(model=str(model), repo=f"oci:{tmp_path / name}")) for name in ("a", "b"))
    (model / "README.md").write_text("# colors")
    assert first == again != push(PushConfig(model=str(model), repo=f"oci:{tmp_path / 'c'}"))


@pytest.mark.parametrize("repo, message", [
    ("oci:", "needs a folder"), ("oci:here", "here: is there already"),
])  # fmt: skip
def test_wrong_places_are_refused_and_nothing_is_left(model, tmp_path, monkeypatch, repo, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match=message):
        push(PushConfig(model=str(model), repo=repo))
    assert {path.name for path in tmp_path.iterdir()} == {"onnx", "here"} and not any((tmp_path / "here").iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(model, tmp_path):
    (model / "weights").write_bytes(bytes(100_000))
    with files_up_to(50_000), pytest.raises(ValueError, match=f"^{tmp_path}/image: larger than a file may be here"):
        push(PushConfig(model=str(model), repo=f"oci:{tmp_path}/image"))
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
