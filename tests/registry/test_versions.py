"""A version's files are of one promotion, whole, and never another model's: also after kills and beside rivals."""

import hashlib
import subprocess
import sys

import pytest

from must.base import storage
from must.base.errors import TransientError
from must.base.lock import LockLostError
from must.registry import promote as registry_module
from must.registry.promote import Registry
from tests.registry.bundles import EVERYWHERE, at_once, latest, make_bundle, make_onnx, promote, refused


def killed(monkeypatched, registry, *flags):
    """The promotion in a process that kills itself where it is told to."""
    command = ["promote", "--registry", registry, "--name", "digits", *map(str, flags)]
    code = (
        "import os, signal, must.registry.promote as r; die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{monkeypatched}\nfrom must.api.cli import main; main({command})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def onnx_folder(folder, seed=0, **files):
    for name, content in files.items():
        make_onnx(folder / f"{name}.onnx", content, seed)
    (folder / "labels.txt").write_text("cat\ndog\n")
    return folder


def is_whole(registry, version):
    """Whether all files of a version are those that it says."""
    place = Registry(registry, "digits")
    told = place.checksums(version)
    found = {name: hashlib.sha256(storage.read_bytes(place.make_uri(version, name))).hexdigest() for name in told}
    return found == told


MOMENTS = {
    "after the first file": "copy = r.copy; r.copy = lambda s, t: die() if 'model.json' in t else copy(s, t)",
    "before the description": "write = r.storage.write_bytes\n"
    "r.storage.write_bytes = lambda uri, *a: die() if uri.endswith('version.json') else write(uri, *a)",
    "before LATEST moves": "r.Registry.set_champion = lambda *_: die()",
    "after LATEST moved": "move = r.Registry.set_champion; r.Registry.set_champion = lambda *a: move(*a) and die()",
}


@pytest.mark.parametrize(
    "registry, moment",
    [("bucket", "before the description"), *(("local", moment) for moment in MOMENTS)],
    indirect=["registry"],
)
def test_a_promotion_killed_at_any_moment_is_completed_by_the_same_command(registry, tmp_path, moment):
    first, second = onnx_folder(tmp_path / "fp32", model="fp32"), onnx_folder(tmp_path / "int8", 1, model="int8")
    promote(registry, "--model", make_bundle(tmp_path / "0"), "--onnx", first)
    before = latest(registry)
    flags = ["--model", make_bundle(tmp_path / "1", seed=1), "--onnx", second, "--champion", before.version]
    killed(MOMENTS[moment], registry, *flags)
    assert (latest(registry) == before) is (moment != "after LATEST moved") and is_whole(registry, before.version)
    versions = Registry(registry, "digits").versions()
    assert len(versions) == (2 if "LATEST" in moment else 1), "without its description it is no version"
    for _ in range(2):
        promote(registry, *flags)
        after = latest(registry)
        assert after.previous == (before.version,) and is_whole(registry, after.version)
        there = Registry(registry, "digits").make_uri(after.version, "onnx/model.onnx")
        assert storage.read_bytes(there) == (second / "model.onnx").read_bytes()
        assert len(Registry(registry, "digits").versions()) == 2


def test_a_version_is_not_written_by_who_lost_its_lock_or_read_an_older_description(registry, tmp_path, monkeypatch):
    place, copy = Registry(registry, "digits"), registry_module.copy
    (tmp_path / "labels").write_text("cat")

    def lose():
        raise LockLostError("held by another")

    with pytest.raises(LockLostError):
        place.write("v", {"onnx/labels.txt": str(tmp_path / "labels")}, {}, lose)
    assert not place.has("v")

    def copy_beside_a_rival(source, target):
        monkeypatch.setattr(registry_module, "copy", copy)
        place.write("v", {}, {"by": "a rival"}, lambda: None)
        return copy(source, target)

    monkeypatch.setattr(registry_module, "copy", copy_beside_a_rival)
    with pytest.raises(TransientError, match="another program wrote it at the same time; run again"):
        place.add("v", {"onnx/labels.txt": str(tmp_path / "labels")}, {"by": "this"})
    assert place.describe("v")["by"] == "a rival"


def test_other_weights_never_get_a_name_that_is_taken(registry, tmp_path, capsys):
    promote(registry, "--model", make_bundle(tmp_path / "a", seed=1))
    before = latest(registry)
    other = make_bundle(tmp_path / "b", seed=2)
    line = refused(capsys, 2, registry, "--model", other, "--version", before.version)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    sums = [hashlib.sha256(data).hexdigest()[:12] for data in weights]
    assert all(sum_ in line for sum_ in sums) and line.endswith("give another --version")
    assert latest(registry) == before and is_whole(registry, before.version)


def test_another_onnx_file_of_the_same_weights_needs_another_version(registry, tmp_path, capsys):
    model = ["--model", make_bundle(tmp_path / "model")]
    fp32, int8 = onnx_folder(tmp_path / "fp32", model="fp32"), onnx_folder(tmp_path / "int8", model="int8")
    promote(registry, *model, "--onnx", fp32)
    first = latest(registry).version
    (int8 / "jpeg.onnx").write_text("takes files")
    line = refused(capsys, 2, registry, *model, "--onnx", int8)
    assert "other ONNX files (different: onnx/jpeg.onnx, onnx/model.onnx); give another --version, or another" in line
    (fp32 / "README.md").write_text("a card that was written anew")
    promote(registry, *model, "--onnx", fp32)
    assert latest(registry).version == first and is_whole(registry, first)
    promote(registry, *model, "--onnx", int8, "--version", "int8")
    assert latest(registry).previous == (first,) and is_whole(registry, "int8")


@EVERYWHERE
def test_onnx_files_are_added_to_a_version_that_has_none(registry, tmp_path):
    model = ["--model", make_bundle(tmp_path / "model"), "--version", "v1"]
    promote(registry, *model)
    (before,) = Registry(registry, "digits").versions()
    promote(registry, *model, "--onnx", onnx_folder(tmp_path / "onnx", model="fp32"))
    (after,) = Registry(registry, "digits").versions()
    added = {"onnx/model.onnx", "onnx/labels.txt"}
    assert after["files"].keys() == before["files"].keys() | added and is_whole(registry, after["version"])
    assert {**after, "files": None} == {**before, "files": None} and latest(registry).version == after["version"]


def test_what_was_exported_into_the_versions_own_folder_is_added(registry, tmp_path):
    promote(registry, "--model", make_bundle(tmp_path / "model"))
    place = tmp_path / "registry" / "digits" / latest(registry).version
    onnx_folder(place / "onnx", model="fp32")
    promote(registry, "--model", place / "bundle", "--onnx", place / "onnx")
    assert is_whole(registry, place.name)
    assert "onnx/model.onnx" in Registry(registry, "digits").checksums(place.name)


def test_a_promotion_killed_while_it_adds_onnx_files_leaves_the_version_whole(registry, tmp_path):
    model = ["--model", make_bundle(tmp_path / "model")]
    promote(registry, *model)
    version = latest(registry).version
    folder = onnx_folder(tmp_path / "onnx", jpeg="takes files", model="fp32")
    moment = "copy = r.copy; r.copy = lambda s, t: die() if t.endswith('model.onnx') else copy(s, t)"
    killed(moment, registry, *model, "--onnx", folder)
    assert (tmp_path / "registry" / "digits" / version / "onnx" / "jpeg.onnx").exists()
    assert is_whole(registry, version) and "onnx/jpeg.onnx" not in Registry(registry, "digits").checksums(version)
    folder = onnx_folder(tmp_path / "other", model="int8")
    promote(registry, *model, "--onnx", folder)
    assert latest(registry).version == version and is_whole(registry, version)
    there = {path.name for path in (tmp_path / "registry" / "digits" / version / "onnx").iterdir()}
    assert there == {path.name for path in folder.iterdir()}


@EVERYWHERE
def test_promotions_of_the_same_weights_with_other_onnx_files_do_not_mix(registry, tmp_path):
    bundle = make_bundle(tmp_path / "model")
    folders = [onnx_folder(tmp_path / name, jpeg=f"jpeg {name}", model=name) for name in ("fp32", "uint8", "int8")]
    codes = at_once(registry, *(["--model", bundle, "--onnx", folder] for folder in folders))
    assert {*codes} <= {0, 2, 75} and codes.count(0) == 1  # 2: it has other files; 75: another one writes the version
    (version,) = Registry(registry, "digits").versions()
    assert is_whole(registry, version["version"])
