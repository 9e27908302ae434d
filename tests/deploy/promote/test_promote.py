"""The registry: versions are whole, LATEST moves once, of two rivals one loses aloud, one command goes back."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest

from must.api.cli import main
from must.base import storage
from must.deploy.promote.registry import Registry
from must.evaluation.result import write_metrics
from tests.deploy.promote.bundles import EVERYWHERE, latest, make_bundle, make_onnx, promote, promote_at_once
from tests.evaluation.measured import MEASURED


@EVERYWHERE
def test_a_version_holds_the_bundle_the_onnx_and_where_they_come_from(registry, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "model", seed=1, revision=3)
    make_onnx(tmp_path / "onnx" / "model.onnx")
    write_metrics(str(tmp_path / "metrics.json"), MEASURED)
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
    with pytest.raises(SystemExit) as ended:
        promote(registry, "--model", tmp_path / "model", "--onnx", tmp_path / "onnx")
    assert ended.value.code == 2 and f"'{where.partition('/')[2]}' is a link" in capsys.readouterr().err
    assert not Registry(registry, "digits").versions()


@EVERYWHERE
def test_a_link_that_comes_while_it_is_copied_is_not_followed(registry, tmp_path):
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link"):
        Registry(registry, "digits").add("v", {"onnx": [(str(tmp_path / "link"), "model.onnx")]}, {})


@pytest.mark.parametrize("broken", ["onnx/model.onnx", "model/model.safetensors"])
def test_what_cannot_be_opened_is_not_published(registry, tmp_path, capsys, broken):
    """A file that was cut off: its name and its neighbours are as they should be."""
    make_bundle(tmp_path / "model")
    make_onnx(tmp_path / "onnx" / "model.onnx")
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:-100])
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--model", tmp_path / "model", "--onnx", tmp_path / "onnx")
    (line,) = capsys.readouterr().err.splitlines()
    assert broken in line and not Registry(registry, "digits").versions()


def test_hidden_files_are_not_published(registry, tmp_path):
    make_onnx(tmp_path / "onnx" / "model.onnx")
    (tmp_path / "onnx" / ".env").write_text("a key")
    promote(registry, "--model", make_bundle(tmp_path / "model"), "--onnx", tmp_path / "onnx")
    (version,) = Registry(registry, "digits").versions()
    assert "onnx/model.onnx" in version["files"] and not [name for name in version["files"] if "env" in name]


@EVERYWHERE
def test_rolling_back_goes_one_champion_further_each_time(registry, tmp_path, capsys):
    names = []
    for seed in range(3):
        promote(registry, "--model", make_bundle(tmp_path / str(seed), seed=seed))
        names.append(latest(registry).version)
    promote(registry, "--rollback")
    assert latest(registry).version == names[1]
    promote(registry, "--rollback")
    assert (latest(registry).version, latest(registry).previous) == (names[0], ())
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--rollback")
    assert "no earlier champion to go back to" in capsys.readouterr().err
    promote(registry, "--model", tmp_path / "2")  # and forward again
    promote(registry, "--model", tmp_path / "1")
    promote(registry, "--rollback", "--to", names[0])
    assert latest(registry).version == names[0]


def test_a_champion_that_had_come_back_is_left_for_the_one_before_its_return(registry, tmp_path):
    models = {name: make_bundle(tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    for name in "abac":
        promote(registry, "--model", models[name], "--version", name)
    for champion, previous in (("a", ("a", "b")), ("b", ("a",)), ("a", ())):
        promote(registry, "--rollback")
        assert (latest(registry).version, latest(registry).previous) == (champion, previous)


def test_a_challenger_of_yesterdays_champion_is_refused(registry, tmp_path, capsys):
    promote(registry, "--model", make_bundle(tmp_path / "a", seed=1), "--champion", "none")
    with pytest.raises(SystemExit, match="73"):
        promote(registry, "--model", make_bundle(tmp_path / "b", seed=2), "--champion", "none")
    assert "LATEST is r0000-" in (line := capsys.readouterr().err) and "not empty, which this model" in line
    assert latest(registry).previous == ()


def test_a_second_run_of_the_same_data_finds_its_model_promoted_and_is_done(registry, tmp_path, capsys):
    """It took the first one's training; its ONNX file, exported once more, need not be the same to the byte."""
    bundle, onnx = make_bundle(tmp_path / "a", seed=1), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        make_onnx(tmp_path / name / "model.onnx", name)
        onnx.append(tmp_path / name)
    promote(registry, "--model", make_bundle(tmp_path / "old", seed=3))
    old = latest(registry).version
    promote(registry, "--model", bundle, "--onnx", onnx[0], "--champion", old)
    before = latest(registry)
    promote(registry, "--model", bundle, "--onnx", onnx[1], "--champion", old)
    assert latest(registry) == before and len(Registry(registry, "digits").versions()) == 2
    assert "LATEST is this model, r0000-" in capsys.readouterr().out


@EVERYWHERE
def test_of_rivals_that_finish_together_one_wins_and_the_others_say_so(registry, tmp_path):
    """Real processes, all at once, each compared with the same champion."""
    rivals = 4
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(rivals)]
    codes = Counter(promote_at_once(registry, *(["--model", bundle, "--champion", "none"] for bundle in bundles)))
    assert codes == {0: 1, 73: rivals - 1}
    assert latest(registry).version and latest(registry).previous == ()


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
    with pytest.raises(ValueError, match="another run moved LATEST at the same moment; a is stored but is not"):
        place.set_champion("a", "promoted")
    assert place.latest().version == "b"


def test_a_lost_answer_to_the_move_is_no_defeat(bucket_server, tmp_path):
    registry = bucket_server.uri + "/registry"
    bucket_server.faults.plan = ["lost", "", "503", ""]
    promote(registry, "--model", make_bundle(tmp_path / "model"), "--champion", "none")
    bucket_server.faults.plan = []
    assert latest(registry).version.startswith("r0000-") and bucket_server.faults.done["lost"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "nowhere"], "no model.json there"),
        ([], "--model is missing: the bundle to promote"),
        (["--rollback", "--list"], "give one of them"),
        (["--to", "r1"], "--to goes with --rollback"),
        (["--model", "x", "--version", "../y"], "--version ../y: use small letters"),
        (["--model", "x", "--name", "A/B"], "--name A/B: use small letters"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        promote("registry", *flags)
    assert message in (line := capsys.readouterr().err) and len(line.splitlines()) == 1


@pytest.mark.parametrize("revision", [-1, 10**9, 10**400], ids=range(3))
def test_a_bundle_whose_data_have_no_revision_needs_a_name(tmp_path, capsys, revision):
    bundle = make_bundle(tmp_path / "bundle", revision=revision)
    with pytest.raises(SystemExit, match="2"):
        promote(str(tmp_path / "registry"), "--model", bundle)
    assert "name it with --version" in (line := capsys.readouterr().err) and len(line.splitlines()) == 1
    promote(str(tmp_path / "registry"), "--model", bundle, "--version", "mine")
    assert latest(str(tmp_path / "registry")).version == "mine"


@pytest.mark.parametrize("revision", ["7", 1.5, True, [1]], ids=range(4))
def test_a_bundle_whose_revision_is_no_number_is_damaged(tmp_path, capsys, revision):
    with pytest.raises(SystemExit, match="2"):
        promote(str(tmp_path / "registry"), "--model", make_bundle(tmp_path / "bundle", revision=revision))
    assert capsys.readouterr().err.endswith("model.json: is damaged\n")


@pytest.mark.parametrize(
    "flags, passed",
    [
        ([], True),
        (["--min-agreement", "0.95"], False),
        (["--gate", "labelled", "--min-gain", "0.1"], False),
        (["--gate", "none", "--min-agreement", "1"], True),
    ],
)
def test_the_gate_decides_and_promote_obeys(tmp_path, capsys, flags, passed):
    write_metrics(str(tmp_path / "metrics.json"), MEASURED)
    decision = tmp_path / "decision.json"
    main(["gate", "--metrics", str(tmp_path / "metrics.json"), "--output", str(decision), *flags])
    shown = capsys.readouterr().out
    assert json.loads(decision.read_text())["passed"] is passed
    assert ("STOP" in shown) is not passed
    bundle, registry = make_bundle(tmp_path / "model"), str(tmp_path / "registry")
    if passed:
        promote(registry, "--model", bundle, "--decision", decision)
        assert Registry(registry, "digits").versions()[0]["decision"]["passed"]
    else:
        with pytest.raises(SystemExit, match="2"):
            promote(registry, "--model", bundle, "--decision", decision)
        assert "the gate stopped this model" in capsys.readouterr().err


def test_zero_shot_goes_green_but_replaces_no_champion(tmp_path, capsys):
    """Nothing was kept of an adaptation: the first model may be that, a champion stays."""
    free = MEASURED.label_free
    same = replace(free, compared=replace(free.compared, agreement=1.0))
    write_metrics(str(tmp_path / "metrics.json"), replace(MEASURED, label_free=same))
    decision = tmp_path / "decision.json"
    main(["gate", "--metrics", str(tmp_path / "metrics.json"), "--output", str(decision)])
    assert "gate (label-free): passed, zero-shot is kept" in capsys.readouterr().out
    said = json.loads(decision.read_text())
    assert said["passed"] and said["outcome"] == "zero-shot"
    bundle, registry = make_bundle(tmp_path / "model"), str(tmp_path / "registry")
    promote(registry, "--model", bundle, "--decision", decision)
    first = Registry(registry, "digits").latest().version
    assert first
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--model", make_bundle(tmp_path / "other", seed=1), "--decision", decision)
    assert "has a champion, which stays" in capsys.readouterr().err
    assert Registry(registry, "digits").latest().version == first
