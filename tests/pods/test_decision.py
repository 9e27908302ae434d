"""The decision of the stage evaluate, and what export and promote make of it. A run that failed after its promotion
goes on: its own model, the champion by then, must not stop at the gate."""

import json
import re
import shlex

import pytest

from must.pods.notes import Facts, Note, write_note
from must.pods.stages import decide, export, promote
from must.pods.summary import determine_outcome, summarize, write_page
from must.registry.promote import Registry
from tests.evaluation.test_gate import answers, better, checked, parse_metrics, unchanged
from tests.registry.bundles import make_bundle, make_onnx, weights_sha256
from tests.registry.bundles import promote as promote_by_hand


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
    others = {"onnx": str(tmp_path / "onnx"), "run_page": str(tmp_path / "page.md")}
    return promote(facts or Facts(), str(tmp_path / "work"), **given, **others, champion=champion)["version"]


def ask(tmp_path, given, facts=None, champion="none", champion_uri="", gate="labelled"):
    """The outcome; the decision is written as the stage evaluate does."""
    registry, measured = Registry(given["registry_uri"], given["model_name"]), {"model": given["bundle"]}
    rules = {"gate": gate}
    found, _ = decide(facts or Facts(), registry, given["details"], measured, champion, champion_uri, rules)
    (tmp_path / "decision.json").write_bytes(found.to_json())
    return found.outcome


def test_the_champion_itself_is_compared_with_zero_shot_and_promoted_again(tmp_path, given, capsys):
    assert ask(tmp_path, given) == "passed"
    first = (tmp_path / "decision.json").read_text()
    version = promoted(tmp_path, given, "none")
    uri = f"{given['registry_uri']}/digits/{version}/bundle"
    assert ask(tmp_path, given, champion=version, champion_uri=uri) == "passed"
    assert (tmp_path / "decision.json").read_text() == first
    assert promoted(tmp_path, given, version, facts := Facts()) == version
    assert facts.action == "nothing new" and facts.result == f"{version} is the champion already"
    assert f"this model is the champion, {version}" in capsys.readouterr().out


def test_a_champion_keeps_its_onnx_files_and_an_earlier_one_is_refused_in_one_line(tmp_path, given):
    assert ask(tmp_path, given) == "passed"
    version = promoted(tmp_path, given, "none")
    make_onnx(tmp_path / "onnx" / "model.onnx", "int8")
    assert promoted(tmp_path, given, version, facts := Facts()) == version and facts.action == "nothing new"
    assert facts.result.startswith(f"{version} is the champion already, and keeps its ONNX files; ")
    assert promoted(tmp_path, given, "none") == version  # another run of the same data, which promoted it meanwhile
    Registry(given["registry_uri"], "digits").set_champion("r0009-1", "promoted")
    with pytest.raises(ValueError, match="other ONNX files, such as of another precision; give another model_name"):
        promoted(tmp_path, given, "r0009-1")


def test_zero_shot_that_is_the_champion_is_promoted_again_and_replaces_no_other(tmp_path, given):
    kept = {"passed": True, "gate": "label-free", "outcome": "kept at zero-shot", "reasons": []}
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
    assert ask(tmp_path, given, facts, gate="auto") == "passed"
    notes = [Note("evaluate", "done", facts=facts), Note("promote", "done", facts=Facts(version="r0000-1"))]
    said = "Promoted r0000-1: +30.0 points over zero-shot (95%: +20.0 to +40.0, 60 answers)"
    assert determine_outcome(notes).headline == said


@pytest.mark.parametrize("kept, outcome", [(False, "passed"), (True, "kept at zero-shot")])
def test_a_champion_with_other_classes_is_replaced_by_a_gain_over_zero_shot_only(tmp_path, given, kept, outcome):
    """As after a class was added. The zero-shot model replaces no champion, and nothing is exported or promoted."""
    metrics = checked(**({"after": unchanged} if kept else {}))
    metrics["model"]["weights_sha256"] = weights_sha256(0)
    (tmp_path / "details" / "metrics.json").write_text(json.dumps(metrics))
    champion, facts = "r0000-0123456789ab", Facts()
    assert ask(tmp_path, given, facts, gate="label-free", champion=champion) == outcome
    assert facts.result.endswith("zero-shot, because the champion, r0000-0123456789ab, has other classes")
    if not kept:
        return
    of_export = {name: given[name] for name in ("bundle", "details", "decision")} | {"index_sha256": ""}
    assert export(said := Facts(), str(tmp_path), **of_export, onnx=str(tmp_path / "new")) == {}
    assert said.result == "nothing is exported: the model is not promoted" and not (tmp_path / "new").exists()
    said = Facts()
    assert promoted(tmp_path, given, champion, said) == "none"
    assert said.result == f"nothing is promoted: {champion} stays"
    assert not (tmp_path / "registry" / "digits" / "LATEST").exists()
    ended = determine_outcome([Note("evaluate", "done", facts=facts), Note("promote", "done", facts=said)])
    assert ended.headline.endswith(f"the champion, {champion}, stays")


def test_what_a_person_rolled_back_is_promoted_again_by_a_person_alone(tmp_path, given, monkeypatch):
    """The next run makes the same model of the same data."""
    registry = Registry(given["registry_uri"], "digits")
    make_onnx(tmp_path / "v0" / "model.onnx", seed=1)
    first = ("--model", make_bundle(tmp_path / "first", seed=1), "--onnx", tmp_path / "v0")
    promote_by_hand(tmp_path / "registry", *first, "--version", "v0")
    assert ask(tmp_path, given) == "passed"
    version = promoted(tmp_path, given, "v0")
    promote_by_hand(tmp_path / "registry", "--rollback", "--to", "v0")
    facts = Facts()
    assert ask(tmp_path, given, facts) == "rolled back"
    assert promoted(tmp_path, given, "v0") == "none" and registry.latest().version == "v0"
    said = determine_outcome([Note("evaluate", "done", facts=facts), Note("promote", "done")]).headline
    begin = f"Not promoted: {version} was rolled back by a person, who can promote it again: must promote "
    assert said.startswith(begin)
    promote_by_hand(tmp_path / "registry", *shlex.split(said.removeprefix(begin))[:4])
    assert registry.latest().version == version and ask(tmp_path, given) == "passed"


def test_after_a_retry_the_last_stage_of_a_green_run_tells_how_it_ended(tmp_path, given, monkeypatch):
    """Kubeflow does not run its exit task again: the page that is there says that the run has failed."""
    monkeypatch.setenv("MUST_RUN_ID", "7")
    facts = Facts(top1=0.9)
    assert ask(tmp_path, given, facts) == "passed"
    write_note(work := str(tmp_path / "work"), "7", Note("evaluate", "done", started=1.0, seconds=9.0, facts=facts))
    write_note(work, "7", Note("promote", "failed", started=20.0, code=137))
    write_page(failed := summarize(work, "7", "again"), str(tmp_path / "page.md"))
    assert failed.headline.startswith("Run failed: promote")
    said = r"\*\*Written\*\*: 20.* UTC; Kubeflow's Retry may have ended it well since then: .*summary\.md"
    assert re.search(said, (tmp_path / "page.md").read_text())
    write_note(work, "7", Note("promote", "running"))
    version = promoted(tmp_path, given, "none")
    kept = tmp_path / "work" / "notes" / "7" / "summary.md"
    assert kept.read_text() == (tmp_path / "page.md").read_text()
    assert kept.read_text().startswith(f"# Promoted {version}: 90.0%") and "| promote | done |" in kept.read_text()
