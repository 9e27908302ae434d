"""A run that failed after its promotion goes on: its own model, the champion by then, must not stop at the gate."""

import json

import pytest

from must.deploy.promote import Registry
from must.runtime.notes import Facts, Note
from must.runtime.stages import gate, promote
from must.runtime.summary import determine_outcome
from tests.deploy.promote.bundles import make_bundle, make_onnx, weights_sha256
from tests.evaluation.test_gate import answers, better, checked, parse_metrics, unchanged


@pytest.fixture
def given(tmp_path):
    """Places of a run whose model is of seed 0."""
    (details := tmp_path / "details").mkdir()
    metrics = parse_metrics(better) | {"baseline_name": "zero-shot", "model": {"weights_sha256": weights_sha256(0)}}
    (details / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "onnx").mkdir()
    make_onnx(tmp_path / "onnx" / "model.onnx")
    return {
        "bundle": str(make_bundle(tmp_path / "model")), "details": str(details), "key": "k", "model_name": "digits",
        "registry_uri": str(tmp_path / "registry"), "decision": str(tmp_path / "decision.json"),
    }  # fmt: skip


def promoted(tmp_path, given, champion, facts=None):
    """The version that the stage promotes."""
    others = {"onnx": str(tmp_path / "onnx"), "promoted": str(tmp_path / "promoted.json")}
    return promote(facts or Facts(), str(tmp_path / "work"), **given, **others, champion=champion)["version"]


def ask(tmp_path, given, facts=None, **more):
    asked = {"gate": "labelled", "gate_settings": {}, "split": "test", "reasons": str(tmp_path / "page.md")}
    return gate(facts or Facts(), str(tmp_path / "work"), **given, **asked | more)["outcome"]


def test_the_champion_itself_is_compared_with_zero_shot_and_promoted_again(tmp_path, given, capsys):
    assert ask(tmp_path, given, champion="none", champion_uri="") == "promote"
    first = (tmp_path / "decision.json").read_text()
    version = promoted(tmp_path, given, "none")
    uri = f"{given['registry_uri']}/digits/{version}/bundle"
    assert ask(tmp_path, given, champion=version, champion_uri=uri) == "promote"
    assert (tmp_path / "decision.json").read_text() == first
    assert promoted(tmp_path, given, version, facts := Facts()) == version
    assert facts.action == "nothing new" and facts.result == f"{version} is the champion already"
    assert f"this model is the champion, {version}" in capsys.readouterr().out


def test_a_champion_keeps_its_onnx_files_and_an_earlier_one_is_refused_in_one_line(tmp_path, given):
    assert ask(tmp_path, given, champion="none", champion_uri="") == "promote"
    version = promoted(tmp_path, given, "none")
    make_onnx(tmp_path / "onnx" / "model.onnx", "int8")
    assert promoted(tmp_path, given, version, facts := Facts()) == version and facts.action == "nothing new"
    assert facts.result.startswith(f"{version} is the champion already, and keeps its ONNX files; ")
    Registry(given["registry_uri"], "digits").set_champion("r0009-1", "promoted")
    with pytest.raises(ValueError, match="other ONNX files, such as of another precision; give another model_name"):
        promoted(tmp_path, given, "r0009-1")


def test_zero_shot_that_is_the_champion_is_promoted_again_and_replaces_no_other(tmp_path, given):
    kept = {"passed": True, "gate": "label-free", "outcome": "zero-shot", "reasons": []}
    (tmp_path / "decision.json").write_text(json.dumps(kept | {"weights_sha256": weights_sha256(0)}))
    version = promoted(tmp_path, given, "none")
    assert promoted(tmp_path, given, version) == version
    other = {"bundle": str(make_bundle(tmp_path / "other", seed=1))}
    for name, content in (("decision.json", kept), ("details/metrics.json", parse_metrics(better))):
        content |= {"weights_sha256": weights_sha256(1), "model": {"weights_sha256": weights_sha256(1)}}
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has a champion, which stays"):
        promoted(tmp_path, given | other, version)


def test_the_gain_that_people_measured_is_in_the_runs_first_line(tmp_path, given):
    metrics = checked(labelled=False, selection=answers(0.3))
    metrics["model"]["weights_sha256"] = weights_sha256(0)
    (tmp_path / "details" / "metrics.json").write_text(json.dumps(metrics))
    facts = Facts()
    assert ask(tmp_path, given, facts, gate="auto", champion="none", champion_uri="") == "promote"
    notes = [Note("gate", "done", facts=facts), Note("promote", "done", facts=Facts(version="r0000-1"))]
    said = "Promoted r0000-1: +30.0 points over zero-shot (95%: +20.0 to +40.0, 60 answers)"
    assert determine_outcome(notes, None).headline == said


@pytest.mark.parametrize("kept, decision", [(False, "promote"), (True, "stop")])
def test_a_champion_with_other_classes_is_replaced_by_a_gain_over_zero_shot_only(tmp_path, given, kept, decision):
    """As after a class was added. The zero-shot model replaces no champion."""
    metrics = checked(**({"after": unchanged} if kept else {}))
    metrics["model"]["weights_sha256"] = weights_sha256(0)
    (tmp_path / "details" / "metrics.json").write_text(json.dumps(metrics))
    champion, facts = {"champion": "r0000-0123456789ab", "champion_uri": ""}, Facts()
    assert ask(tmp_path, given, facts, gate="label-free", **champion) == decision
    page = (tmp_path / "page.md").read_text()
    assert "zero-shot model, because the champion, r0000-0123456789ab, has other classes" in page
    if kept:
        others = {"onnx": str(tmp_path / "onnx"), "promoted": str(tmp_path / "promoted.json")}
        stays = promote(said := Facts(), str(tmp_path / "work"), **given, **others, champion=champion["champion"])
        assert stays == {"version": "none"} and said.result == "nothing is promoted: r0000-0123456789ab stays"
        assert not (tmp_path / "registry" / "digits" / "LATEST").exists()
        ended = determine_outcome([Note("gate", "done", facts=facts), Note("promote", "done", facts=said)], None)
        assert ended.headline.endswith("the champion, r0000-0123456789ab, stays")
