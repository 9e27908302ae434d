"""The registry: versions are whole, LATEST moves once, of two rivals one loses aloud, one command goes back; files that
are damaged or of another kind are refused in one line."""

import hashlib
import json
import shlex
from collections import Counter
from dataclasses import replace

import pytest

from must.api.cli import main
from must.base import storage
from must.evaluation.result import write_metrics
from must.registry.promote import Registry
from tests.evaluation.measured import MEASURED
from tests.registry.bundles import EVERYWHERE, at_once, latest, make_bundle, make_onnx, measured, promote, refused


@EVERYWHERE
def test_a_version_holds_the_bundle_the_onnx_and_where_they_come_from(registry, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "model", seed=1, revision=3)
    make_onnx(tmp_path / "onnx" / "model.onnx", seed=1)
    (tmp_path / "onnx" / ".env").write_text("a key: hidden files are not published")
    write_metrics(str(tmp_path / "metrics.json"), measured(1))
    promote(registry, "--model", bundle, "--onnx", tmp_path / "onnx", "--metrics", tmp_path / "metrics.json")
    assert "LATEST is r0003-" in capsys.readouterr().out
    (version,) = Registry(registry, "digits").versions()
    weights = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    assert version["version"] == f"r0003-{weights[:12]}" == latest(registry).version
    assert set(version["files"]) == {"bundle/model.safetensors", "bundle/model.json", "onnx/model.onnx"}
    assert version["files"]["bundle/model.safetensors"] == {"bytes": 1000, "sha256": weights}
    assert version["metrics"] == {"adapted": MEASURED.adapted.numbers, "baseline": MEASURED.baseline.numbers}
    assert version["metrics"]["adapted"]["top1"] == 0.9
    assert (version["index_revision"], version["git_revision"]) == (3, "abc")
    promote(registry, "--list")
    assert "90.0%" in (line := capsys.readouterr().out) and line.rstrip().endswith("LATEST")


@pytest.mark.parametrize("where", ["model/model.json", "onnx/env.txt", "onnx/more"])
def test_what_a_link_leads_to_is_not_published(registry, tmp_path, capsys, where):
    make_bundle(tmp_path / "model")
    make_onnx(tmp_path / "onnx" / "model.onnx")
    (tmp_path / "secret").mkdir()
    target, link = tmp_path / "secret" / "key", tmp_path / where
    if link.exists():
        link.rename(target)
    link.symlink_to(tmp_path / "secret" if where == "onnx/more" else target)
    line = refused(capsys, 2, registry, "--model", tmp_path / "model", "--onnx", tmp_path / "onnx")
    assert f"'{where.partition('/')[2]}' is a link" in line
    assert not Registry(registry, "digits").versions()


@EVERYWHERE
def test_a_link_that_comes_while_it_is_copied_is_not_followed(registry, tmp_path):
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link"):
        Registry(registry, "digits").add("v", {"onnx/model.onnx": str(tmp_path / "link")}, {})


@pytest.mark.parametrize("broken", ["onnx/model.onnx", "model/model.safetensors"])
def test_what_cannot_be_opened_is_not_published(registry, tmp_path, capsys, broken):
    """A file that was cut off: its name and its neighbours are as they should be."""
    make_bundle(tmp_path / "model")
    make_onnx(tmp_path / "onnx" / "model.onnx")
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:-100])
    assert broken in refused(capsys, 2, registry, "--model", tmp_path / "model", "--onnx", tmp_path / "onnx")
    assert not Registry(registry, "digits").versions()


@pytest.mark.parametrize("what", ["onnx", "metrics", "decision"])
def test_files_of_another_model_are_not_promoted(registry, tmp_path, capsys, what):
    """As after `must adapt` has made another model in a folder that still has them."""
    make_onnx(tmp_path / "onnx" / "model.onnx", seed=1)
    decision = decided(tmp_path, MEASURED, seed=1)
    paths = {"onnx": tmp_path / "onnx", "metrics": tmp_path / "metrics.json", "decision": decision}
    other = ["--model", make_bundle(tmp_path / "model"), f"--{what}", paths[what]]
    line = refused(capsys, 2, registry, *other)
    assert f"--{what} {paths[what]}: was made of another model (weights " in line and " again" in line
    assert not Registry(registry, "digits").versions()
    own = [flag for name, path in paths.items() for flag in (f"--{name}", path)]
    promote(registry, "--model", make_bundle(tmp_path / "own", seed=1), *own)


def test_weights_that_the_description_does_not_name_are_not_promoted(registry, tmp_path, capsys):
    bundle, other = make_bundle(tmp_path / "model"), make_bundle(tmp_path / "other", seed=1)
    (bundle / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "of another model than the model.json" in refused(capsys, 2, registry, "--model", bundle)


@EVERYWHERE
def test_the_same_rollback_again_changes_nothing(registry, tmp_path, capsys):
    names = []
    for seed in range(4):
        promote(registry, "--model", make_bundle(tmp_path / str(seed), seed=seed))
        names.append(latest(registry).version)
        if not seed:
            assert "no earlier champion to go back to" in refused(capsys, 2, registry, "--rollback")
    promote(registry, "--rollback")
    first = latest(registry)
    assert first.version == names[2]
    capsys.readouterr()
    promote(registry, "--rollback")
    assert latest(registry) == first
    line = f"is {names[2]} already (rolled back from {names[3]}); further back: --to {names[1]}"
    assert line in capsys.readouterr().out
    for _ in range(2):
        promote(registry, "--rollback", "--to", names[0])
        assert (latest(registry).version, latest(registry).previous) == (names[0], ())
    promote(registry, "--model", tmp_path / "3")  # and forward again
    promote(registry, "--rollback")
    assert latest(registry).version == names[0]


def test_a_champion_that_cannot_be_served_is_announced(registry, tmp_path, capsys):
    for model, run in (("model", f"`must export {tmp_path}`, then promote again\n"), ("other", "again with --onnx\n")):
        promote(registry, "--model", make_bundle(tmp_path / model))
        line = capsys.readouterr().err
        assert "without an ONNX file `must serve` cannot serve r0000-" in line and line.endswith(run)
    make_onnx(tmp_path / "onnx" / "model.onnx")
    for flags in (["--onnx", tmp_path / "onnx"], []):  # a version keeps the file that it has
        promote(registry, "--model", tmp_path / "model", *flags)
        assert capsys.readouterr().err == ""
    served = latest(registry).version
    line = refused(capsys, 2, registry, "--model", make_bundle(tmp_path / "new", seed=5))
    assert f"can serve the champion, {served}, and not this model" in line and latest(registry).version == served


def test_a_rollback_goes_to_a_champion_that_is_there_and_can_be_served(registry, tmp_path, capsys):
    models = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(4)]
    for seed in range(4):
        make_onnx(tmp_path / f"onnx{seed}" / "model.onnx", seed=seed)
    names = []
    for seed, onnx in enumerate((True, True, False, True)):  # the third one has none
        flags = ["--onnx", tmp_path / f"onnx{seed}"] if onnx else []
        if not onnx:  # as before there were ONNX files: promotions refuse it
            Registry(registry, "digits").add("bare", {"bundle/model.json": str(models[seed] / "model.json")}, {})
            Registry(registry, "digits").set_champion("bare", "promoted")
        else:
            promote(registry, "--model", models[seed], *flags)
        names.append(latest(registry).version)
    before = latest(registry)
    for flags in ([], ["--to", names[2]]):
        line = refused(capsys, 2, registry, "--rollback", *flags)
        assert line.endswith(f"it has no ONNX file; choose another with --to: {names[1]}, {names[0]}")
    storage.delete(Registry(registry, "digits").make_uri(names[1], "version.json"))
    line = refused(capsys, 2, registry, "--rollback", "--to", names[1])
    assert line.endswith(f"{names[1]}: it was deleted; choose another with --to: {names[0]}")
    assert latest(registry) == before
    whole = storage.read_bytes(Registry(registry, "digits").make_uri(names[3], "version.json"))
    storage.write_bytes(Registry(registry, "digits").make_uri(names[3], "version.json"), b"{")  # a reason to go back
    promote(registry, "--rollback", "--to", names[0])
    assert latest(registry).version == names[0]
    storage.write_bytes(Registry(registry, "digits").make_uri(names[3], "version.json"), whole)
    command = refused(capsys, 2, registry, "--rollback", "--to", names[3]).partition("to promote it again: must ")[2]
    main(shlex.split(command))  # forward again
    assert (latest(registry).version, latest(registry).previous) == (names[3], (names[0],))


def test_the_last_fifty_champions_are_remembered_and_those_that_were_deleted_stay_so(registry, capsys):
    place = Registry(registry, "digits")
    for number in range(53):
        place.set_champion(f"v{number}", "promoted")
    assert latest(registry).previous == tuple(f"v{number}" for number in range(2, 52))
    line = refused(capsys, 2, registry, "--rollback")
    assert line.endswith("v51: it was deleted; there is no other one to go back to")


def test_a_champion_that_had_come_back_is_left_for_the_one_before_its_return(registry, tmp_path):
    models = {name: make_bundle(tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    for name in "abac":
        promote(registry, "--model", models[name], "--version", name)
    for champion, previous in (("a", ("a", "b")), ("b", ("a",)), ("a", ())):
        promote(registry, "--rollback", "--to", champion)
        assert (latest(registry).version, latest(registry).previous) == (champion, previous)


@EVERYWHERE
def test_of_rivals_that_finish_together_one_wins_and_the_others_say_so(registry, tmp_path, capsys):
    rivals = 4
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(rivals)]
    codes = Counter(at_once(registry, *(["--model", bundle, "--champion", "none"] for bundle in bundles)))
    assert codes == {0: 1, 73: rivals - 1}
    line = refused(capsys, 73, registry, "--model", make_bundle(tmp_path / "late", seed=9), "--champion", "none")
    assert "LATEST is r0000-" in line and "not empty, which this model" in line
    assert latest(registry).version and latest(registry).previous == ()


@pytest.mark.parametrize("other", ["c", "d"], ids=["as before, and yet not", "another"])
def test_a_rollback_that_was_overtaken_says_so(registry, tmp_path, monkeypatch, capsys, other):
    """By one that went further back, and a promotion of the same model again, or of another one."""
    for name, seed in {"a": 0, "b": 1, "c": 2}.items():
        promote(registry, "--model", make_bundle(tmp_path / name, seed=seed), "--version", name)
    make_bundle(tmp_path / "d", seed=3)
    has = Registry.has

    def be_overtaken(self, version):
        monkeypatch.setattr(Registry, "has", has)
        promote(registry, "--rollback", "--to", "a")
        promote(registry, "--model", tmp_path / other, "--version", other)
        capsys.readouterr()
        return has(self, version)

    monkeypatch.setattr(Registry, "has", be_overtaken)
    assert "another run moved LATEST meanwhile" in refused(capsys, 73, registry, "--rollback")
    assert (latest(registry).version, latest(registry).previous) == (other, ("a",))


@EVERYWHERE
def test_a_writer_between_reading_and_moving_is_noticed(registry, tmp_path, monkeypatch):
    place, real = Registry(registry, "digits"), storage.read_versioned
    for version in ("a", "b"):
        place.add(version, {}, {})

    def read_then_lose(uri):
        seen = real(uri)
        monkeypatch.setattr(storage, "read_versioned", real)
        Registry(registry, "digits").set_champion("b", "the rival")
        return seen

    monkeypatch.setattr(storage, "read_versioned", read_then_lose)
    with pytest.raises(ValueError, match="another run moved LATEST meanwhile"):
        place.set_champion("a", "promoted")
    assert place.latest().version == "b"


def test_a_lost_answer_to_the_move_is_no_defeat(bucket_server, tmp_path):
    registry = bucket_server.uri + "/registry"
    bucket_server.faults.plan = ["lost", "", "503", ""]
    promote(registry, "--model", make_bundle(tmp_path / "model"), "--champion", "none")
    bucket_server.faults.plan = []
    assert latest(registry).version.startswith("r0000-") and bucket_server.faults.done["lost"]


def decided(tmp_path, metrics, *flags, seed=0):
    """decision.json of `must gate` on the bundle of that seed."""
    write_metrics(str(tmp_path / "metrics.json"), measured(seed, metrics))
    main(["gate", "--metrics", str(tmp_path / "metrics.json"), "--output", str(tmp_path / "decision.json"), *flags])
    return tmp_path / "decision.json"


def test_promote_obeys_the_gate(registry, tmp_path, capsys):
    """Where nothing was kept of an adaptation, the first model may be zero-shot's, but a champion stays."""
    model = ["--model", make_bundle(tmp_path / "model")]
    stopped = decided(tmp_path, MEASURED, "--min-gain", "0.5")
    assert "the gate stopped this model" in refused(capsys, 2, registry, *model, "--decision", stopped)
    same = replace(MEASURED.label_free, compared=replace(MEASURED.label_free.compared, agreement=1.0))
    nothing_kept = replace(MEASURED, label_free=same)
    promote(registry, *model, "--decision", decided(tmp_path, nothing_kept, "--gate", "label-free"))
    (version,) = Registry(registry, "digits").versions()
    assert version["decision"]["passed"] and version["decision"]["outcome"] == "kept at zero-shot"
    decision = decided(tmp_path, nothing_kept, "--gate", "label-free", seed=1)
    flags = ["--model", make_bundle(tmp_path / "other", seed=1), "--decision", decision]
    assert "has a champion, which stays" in refused(capsys, 2, registry, *flags)
    assert latest(registry).version == version["version"]


DEEP = "[" * 100_000 + "]" * 100_000
FOREIGN = [
    DEEP, "[]", '{"version": ' + "9" * 5000 + "}", '{"a": "\xff"}', "{}", '{"passed": null}', '{"adapted": 1}',
    '{"metrics": 1, "version": "a", "created": "b", "backbone": "c"}', '{"label_free": null}',
]  # fmt: skip


@pytest.fixture
def place(registry, tmp_path):
    """The folder of a registry's model, with one version."""
    promote(registry, "--model", make_bundle(tmp_path / "model"))
    return tmp_path / "registry" / "digits"


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_file_is_one_line(place, registry, tmp_path, capsys, text):
    (file := tmp_path / "file.json").write_bytes(text.encode("latin-1"))
    for flag in ("--metrics", "--decision") if "passed" not in text and "adapted" not in text else ("--metrics",):
        assert str(file) in refused(capsys, 2, registry, "--model", tmp_path / "model", flag, file)
    (place / latest(registry).version / "version.json").write_bytes(file.read_bytes())
    assert "version.json" in refused(capsys, 2, registry, "--list")
    (place / "decisions").mkdir()
    (place / "decisions" / "key.json").write_bytes(file.read_bytes())
    assert Registry(registry, "digits").decision("key") is None  # nothing is known: the run does its work


def test_a_latest_that_is_damaged_is_deleted_and_a_version_promoted_again_as_its_line_says(place, registry, capsys):
    version = latest(registry).version
    content = json.loads((place / "LATEST").read_text())
    strays = (json.dumps(content | stray) for stray in ({"version": "../other"}, {"previous": ["/etc"]}))
    for damage in ("", DEEP, '{"version": "x"}', *strays):
        (place / "LATEST").write_text(damage)
        line = refused(capsys, 2, registry, "--rollback")
        command = (
            f"must promote --model {place}/VERSION/bundle --version VERSION --registry {place.parent} --name digits"
        )
        assert line.endswith(f"LATEST is damaged; delete it, then promote the champion again: {command}")
    (place / "LATEST").unlink()
    promote(registry, "--model", place / version / "bundle")
    assert latest(registry).version == version
