"""The check of a cluster, against a server whose runs end as recorded: it finds what is wrong and leaves nothing."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from must_pipeline.server import wait
from tests.kfp import __main__ as program
from tests.kfp.__main__ import make_folders
from tests.kfp.cases import CASES
from tests.kfp.cluster import RACE, RETRIED, Pods
from tests.kfp.runs import Seen
from tests.kfp.stand_in import Player, StandInPods


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("KFP_HOST", "KFP_COOKIE", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KFP_TOKEN", "me")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(wait, "POLL", 0.01)
    monkeypatch.setattr(program, "upload_data", lambda place: None)  # nobody looks at images here
    made = Player(users={"Bearer me": {"vision"}})
    made.stored["experiments"].clear()
    yield made
    made.close()


@pytest.fixture
def checking(server, tmp_path, monkeypatch):
    def call(*more):
        words = ["--host", server.url, "--namespace", "vision", "--store", tmp_path / "store", *more]
        monkeypatch.setattr(sys, "argv", ["test-kfp", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            program.main()
        return end.value.code

    return call


def rows(text):
    return {line.split("  ")[0]: line for line in text.split("\ncase ")[1].split("\n\n")[0].splitlines()[1:]}


@pytest.mark.slow
def test_every_way_is_tried_and_nothing_is_left(server, checking, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "Pods", lambda namespace: StandInPods(server))
    assert checking("--minutes", 2) == 0
    table = rows(capsys.readouterr().out)
    assert set(table) == {case.name for case in CASES}
    assert {name for name, row in table.items() if row.endswith("  ok")} == set(table) - {"two nodes"}
    assert "not tried: no Kubeflow Trainer to be seen" in table["two nodes"]
    assert not any(server.stored.values()) and not list((tmp_path / "store").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("promise, verdict", [(RACE, "ok"), (RETRIED, "WRONG")])
def test_a_pod_that_vanishes_is_judged_by_what_argos_setting_promises(
    server, checking, capsys, monkeypatch, promise, verdict
):
    pods = StandInPods(server)
    pods.promise, server.lost = promise, ("deleted",)
    monkeypatch.setattr(program, "Pods", lambda namespace: pods)
    assert checking("--only", "pod deleted in training") == int(verdict == "WRONG")
    row = rows(capsys.readouterr().out)["pod deleted in training"]
    assert f"Run stopped from outside, during train (by Argo's setting such pods are {promise})" in row
    assert row.endswith(verdict)


def test_without_kubernetes_pods_are_left_alone(checking, capsys):
    assert checking("--only", "worker killed,pod deleted in training,wrong input") == 0
    table = rows(capsys.readouterr().out)
    assert "not tried: no access to Kubernetes from here" in table["worker killed"]
    assert table["wrong input"].endswith("  ok")


@pytest.mark.slow
def test_what_a_case_comes_after_is_tried_before_it(server, checking, capsys):
    """Nothing is nothing new before something was promoted."""
    assert checking("--only", "nothing new") == 0
    assert list(rows(capsys.readouterr().out)) == ["promoted", "nothing new"]
    assert checking("--only", "promotid") == 2
    assert "--only: no case 'promotid'; there are: promoted, " in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_in_one_case_does_not_end_the_others(server, checking, capsys, monkeypatch):
    pods = StandInPods(server)
    monkeypatch.setattr(program, "Pods", lambda namespace: pods)
    monkeypatch.setattr(pods, "delete", lambda run_id: {}["no training pod"])
    assert checking("--only", "pod deleted in training,wrong input") == 1
    table = rows(capsys.readouterr().out)
    assert "KeyError: 'no training pod'" in table["pod deleted in training"] and table["wrong input"].endswith("  ok")


def test_a_run_that_cannot_start_is_not_waited_for_nor_followed_by_others(server, checking, capsys, monkeypatch):
    pods = StandInPods(server)
    monkeypatch.setattr(program, "Pods", lambda namespace: pods)
    pods.hopeless = "must-x-123: ImagePullBackOff: Back-off pulling image must-shard:0.1.0"
    server.play = lambda run, values, done: server.move(run, "RUNNING")
    assert checking("--only", "promoted,wrong input") == 1
    table = rows(capsys.readouterr().out)
    assert re.search("ImagePullBackOff.* WRONG", table["promoted"])
    assert "not tried: promoted did not go on" in table["wrong input"]


@pytest.mark.slow
def test_what_takes_too_long_ends_the_check(server, checking, capsys):
    server.play = lambda run, values, done: server.move(run, "RUNNING")
    assert checking("--only", "promoted,wrong input", "--minutes", 0.0001) == 1
    table = rows(capsys.readouterr().out)
    assert "RUNNING, not over after" in table["promoted"] and "not tried" in table["wrong input"]
    assert not any(server.stored.values())


def test_pods_of_another_user_may_write_below_the_folder(tmp_path):
    make_folders(str(tmp_path / "place"))
    for folder in ("place", "place/work"):
        assert (tmp_path / folder).stat().st_mode & 0o7777 == 0o2777


@pytest.mark.slow
def test_another_end_than_expected_is_wrong(server, checking, capsys):
    server.play = lambda run, values, done: server.move(run, "FAILED")
    assert checking("--only", "promoted") == 1
    assert re.search(r"\(no page\) +WRONG", rows(capsys.readouterr().out)["promoted"])


@pytest.mark.slow
def test_what_cannot_be_deleted_is_named(server, checking, capsys):
    delete = server.one
    server.one = lambda method, kind, name, action: (
        (500, {"message": "locked", "code": 13}) if method == "DELETE" and kind == "experiments"
        else delete(method, kind, name, action)
    )  # fmt: skip
    assert checking("--only", "wrong input") == 0
    assert re.search(r"could not be deleted: experiment of must-check-\w+: .*locked", capsys.readouterr().out)


def test_a_training_pod_is_known_by_the_name_of_its_node():
    from tests.kfp.cluster import TRAINING

    name = "must-h6n57(0).root(0).exit-handler-1(0).condition-2(0).{}(0).executor(0)"
    assert TRAINING.search(name.format("train")) and TRAINING.search(name.format("train-job"))
    assert TRAINING.search("must-h6n57.root.exit-handler-1.condition-2.train.executor")
    assert not TRAINING.search(name.format("evaluate"))
    assert not TRAINING.search("must-h6n57(0).root(0).train-driver(0)")


def test_without_a_configuration_nothing_of_kubernetes_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    pods = Pods("vision")
    assert pods.cannot_start("7") == ""
    assert "no access to Kubernetes" in pods.unusable() and "no access to Kubernetes" in pods.no_trainer("must-torch")


# -- what Argo was seen to make of a pod, and what the cases expect
RECORDED = json.loads((Path(__file__).parents[1] / "pipeline" / "recorded" / "argo.json").read_text())["cases"]
ENDS = {  # what was done to the pod: (the case, what the page said of a run that Argo did not save)
    "pod deleted": ("pod deleted in training", "Run stopped from outside, during train"),
    "pod evicted": ("pod evicted in training", "Run stopped from outside, during train"),
    "node shut down": ("pod evicted in training", "Run stopped from outside, during train"),
    "wrong input": ("wrong input", "Run failed: inputs: the input is wrong"),
    "run terminated": ("terminated", "Run stopped from outside, during train"),
}


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: f"{one['done']}, {one['policy']}")
def test_each_ending_that_argo_was_seen_to_give_is_what_its_case_accepts(recorded):
    name, lost = next(end for done, end in ENDS.items() if recorded["done"].startswith(done))
    (case,) = (case for case in CASES if case.name == name)
    good = recorded["workflow"]["phase"] == "Succeeded"
    tries = sum(node["type"] == "Pod" for node in recorded["nodes"]) if name != "wrong input" else 0
    seen = Seen("SUCCEEDED" if good else "FAILED", "Promoted r0000-abc" if good else lost, 2 if good else tries)
    promised = RETRIED if recorded["policy"] == "expression" else RACE
    assert case.fits(dataclasses.replace(seen, promised=promised if case.vanishes else ""))


def test_a_setting_that_repeats_is_held_to_it():
    (case,) = (case for case in CASES if case.name == "pod evicted in training")
    lost = Seen("FAILED", "Run stopped from outside, during train", 1)
    assert case.fits(dataclasses.replace(lost, promised=RACE))
    assert not case.fits(dataclasses.replace(lost, promised=RETRIED))
