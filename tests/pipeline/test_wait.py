"""`submit --wait` against a server that plays recorded ends of runs, falls silent, or forgets a run's workflow."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from must.base.storage import store
from must.runtime.notes import Facts, Failure, Note, write_note
from must_components.cluster import is_refused, list_failures, parse_exit_code
from must_pipeline import submit
from tests.local_server import Answer, serving
from tests.pipeline.conftest import PARAMETERS, kubeconfig

RUNS = json.loads((Path(__file__).parent / "recorded" / "runs.json").read_text())
REFUSED = """pods "must-x-retry-system-container-impl-1" is forbidden: violates PodSecurity "restricted:latest": \
runAsNonRoot != true (pod or container "main" must set securityContext.runAsNonRoot=true)"""


@pytest.fixture
def waiting(submitter, files):
    """Runs submit --submit."""
    (files / "run.yaml").write_text(yaml.safe_dump(PARAMETERS | {"work_uri": f"{files}/work"}))
    return lambda *more: submitter("--parameters", files / "run.yaml", "--wait", *more)


def play(server, name):
    server.states, server.tasks = ["PENDING", "RUNNING", RUNS[name]["state"]], RUNS[name]["task_details"]


@pytest.mark.parametrize(
    "name, code, line",
    [
        ("success", 0, ""),
        ("retried", 0, ""),
        ("wrong input", 1, "failed: classifier"),
        ("quota", 1, "failed: root-driver"),
        ("terminated", 1, "failed: evaluate-driver"),
    ],
)
def test_the_end_of_a_run_and_the_stage_that_failed(server, waiting, capsys, name, code, line):
    play(server, name)
    assert waiting() == code
    out = capsys.readouterr().out
    assert (line in out) if line else ("failed" not in out)
    assert "The page about it is the artifact of the stage summary." in out


def test_while_it_waits_it_names_stages_and_nothing_of_kubeflows_own(server, waiting, capsys):
    server.states = ["RUNNING", "SUCCEEDED"]
    names = ["must-abcde", "root", "exit-handler-1", "condition-2", "condition-2-driver", "shard", "shard-driver"]
    server.tasks = [(name, "RUNNING") for name in [*names, "classifier-driver"]]
    assert waiting() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "running" in line)
    assert line.split()[1:] == ["running", "shard", "classifier"]


def test_the_summary_is_printed_where_the_notes_can_be_read(server, files, waiting, capsys):
    """After Kubeflow's own Retry too, which repeats stages, but not the stage summary."""
    play(server, "wrong input")
    note = Note("classifier", "failed", code=2, error=Failure("UserError", "no such model"))
    server.meanwhile = lambda run: write_note(f"{files}/work", run["run_id"], note)
    assert waiting() == 1 and len(server.stored["runs"]) == 1  # nothing is started again
    out = capsys.readouterr().out
    assert "\nRun failed: classifier: the input is wrong\n\nWhy: no such model" in out and "\nfailed: " not in out
    assert "\nFirst: correct the input; " in out and "\nCommand to go on: must-pipeline submit --again " in out


@pytest.fixture
def evicted(server, files, monkeypatch):
    """Plays a node that is taken back: the stage was asked to end, then the run fails. Returns how often it happens."""
    move, times = server.move, [1]

    def leave_and_move(run, state):
        if run["state"] in submit.OVER:
            return
        lost = times[0] > 0
        ended = Note("train", signalled=1.0) if lost else Note("promote", "done", facts=Facts(version="r1"))
        write_note(f"{files}/work", run["run_id"], ended)
        times[0] -= 1
        history = ["CANCELING"] if server.terminated else []
        for one in [*history, "FAILED" if lost else "SUCCEEDED"]:
            move(run, one)

    server.terminated, server.states = False, ["RUNNING"]
    monkeypatch.setattr(server, "move", leave_and_move)
    return times


def test_a_run_that_was_stopped_from_outside_is_started_again(server, waiting, evicted, capsys):
    assert waiting() == 0
    out = capsys.readouterr().out
    first, second = server.stored["runs"].values()
    assert f"the run {first['run_id']} was stopped, but not by a person: starting it again (2 restarts left)" in out
    assert out.index("\nRun stopped from outside") < out.index("\nPromoted r1")
    assert second["display_name"] == f"{first['display_name']} again"
    assert second["runtime_config"] == first["runtime_config"]


@pytest.mark.parametrize("flags, runs", [((), 3), (("--restarts", "0"), 1)])
def test_it_is_started_again_as_often_as_asked_and_no_more(server, waiting, evicted, flags, runs):
    evicted[0] = 9
    assert waiting(*flags) == 1 and len(server.stored["runs"]) == runs


def test_a_run_that_a_person_ended_is_not_started_again(server, waiting, evicted, capsys):
    server.terminated = True
    assert waiting() == 1 and len(server.stored["runs"]) == 1
    assert "the run was ended by a person" in capsys.readouterr().out


def spoil_after_start(server, faults):
    answer = server.answer

    def spoil(method, path, *rest):
        if method == "POST" and path.endswith("/runs"):
            server.faults += faults
        return answer(method, path, *rest)

    server.answer = spoil


def test_what_passes_by_does_not_end_the_waiting(server, waiting, capsys, monkeypatch):
    monkeypatch.setattr(store, "SILENT", 0)
    monkeypatch.setattr(store.Waiting, "last", -store.LINE_PAUSE)
    spoil_after_start(server, ["lost"] * 4 + [502] * 9 + [503, 401])  # the client itself asks three times
    assert waiting() == 0 and not server.faults
    assert re.search(r"http://[^\n]*: no answer yet \([^\n]*; repeated for up to 900 s", capsys.readouterr().err)


def test_silence_for_longer_than_that_does(server, waiting, capsys, monkeypatch):
    monkeypatch.setattr(submit, "SERVER_TIMEOUT", 0)
    spoil_after_start(server, [502] * 99)
    assert waiting() == 2 and "502" in capsys.readouterr().err


def test_a_token_that_is_renewed_meanwhile_is_read_again(server, waiting, tmp_path, monkeypatch):
    """A pod's projected token is replaced by the kubelet before it expires."""
    monkeypatch.delenv("KFP_TOKEN")
    (tmp_path / "token").write_text("first")
    server.users = {"Bearer first": {"vision"}, "Bearer second": {"vision"}}
    server.wanted_header = ("Authorization", "Bearer first")

    def expire(run):
        (tmp_path / "token").write_text("second")
        server.wanted_header = ("Authorization", "Bearer second")

    server.meanwhile = expire
    assert waiting("--token-file", tmp_path / "token") == 0


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Kubernetes API: a list says, a look at a time, how many workflows there are, or which; None: no right."""

    def answer(request):
        assert "/apis/argoproj.io/v1alpha1/namespaces/vision/workflows" in request.path
        assert "pipeline%2Frunid" in request.path
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        items = [found] if isinstance(found, dict) else [{"status": {}}] * (found or 0)
        return Answer(403 if found is None else 200, {"items": items})

    looks = []
    with serving(answer) as url:
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, url))
        yield looks


def test_a_run_whose_workflow_was_deleted_is_noticed(server, waiting, cluster, capsys):
    server.states = ["RUNNING"]  # for good
    cluster += [1, 1, 0]
    assert waiting() == 1
    assert "was deleted: Kubeflow keeps the state running." in capsys.readouterr().err


@pytest.mark.parametrize("looks", [[0], [1, None], [1, 0, 1]])
def test_a_workflow_that_was_never_seen_or_cannot_be_looked_at_says_nothing(server, waiting, cluster, looks):
    server.states = ["RUNNING"] * 6 + ["SUCCEEDED"]
    cluster += looks
    assert waiting() == 0


def workflow(*endings):
    """With a pod for each (node's name, phase, message), in the form that Argo has (recorded/argo.json)."""
    nodes = {
        str(number): {"type": "Pod", "name": f"must-x(0).root(0).{name}", "phase": phase, "message": message,
                      "startedAt": f"2026-11-26T20:{number:02}:00Z"}
        for number, (name, phase, message) in enumerate(endings)
    }  # fmt: skip
    return {"status": {"nodes": nodes}}


def packed(made):
    nodes = json.dumps(made["status"]["nodes"]).encode()
    return {"status": {"compressedNodes": base64.b64encode(gzip.compress(nodes)).decode()}}


@pytest.mark.parametrize("form", [dict, packed])
def test_a_stage_whose_pod_is_refused_thrice_ends_the_waiting_with_the_reason(server, waiting, cluster, capsys, form):
    """As Pipelines' own setting repeats it: the pod's tries, and those of the group around it."""
    server.states = ["RUNNING"]  # for good
    tries = [f"exit-handler-1(0).inputs({number}).executor(0)" for number in range(3)]
    cluster += [form(workflow(*((name, "Error", REFUSED) for name in tries[:count]))) for count in (1, 2, 3)]
    assert waiting() == 1
    shown = capsys.readouterr()
    assert f"inputs failed 3 times: {REFUSED}" in shown.out and shown.out.count("inputs failed") == 1
    assert "this run cannot succeed: Kubernetes rejects the pods of inputs" in shown.err
    assert "start it again: must-pipeline submit --again" in shown.err


def test_a_stage_whose_nodes_are_taken_is_told_and_waited_for(server, waiting, cluster, capsys):
    server.states = ["RUNNING"] * 6 + ["SUCCEEDED"]
    low = "The node was low on resource: memory."
    taken = [(f"exit-handler-1(0).condition-2(0).train(0).executor({number})", "Failed", low) for number in range(4)]
    cluster += [workflow(*taken)]
    assert waiting() == 0
    assert capsys.readouterr().out.count(f"train failed 4 times: {low}") == 1


AROUND = ["must-abcde", "root", "exit-handler-1", "for-loop-3", "iteration-iterations", "iteration-iterations(0:0)"]
AROUND += ["iteration-item", "executor"]
"""What Kubeflow wraps around a stage in parts: the names that its backend compiles a loop to (argocompiler/dag.go)."""


@pytest.mark.parametrize(
    "tasks, looks, said",
    [
        ([*AROUND, "shard-part"], [None], "failed: shard-part\n"),
        # the third time is told without a right to see the workflow
        ([*(f"inputs({number})" for number in range(3)), *["executor(0)"] * 5], [None],
         "inputs failed 3 times: the workflow's events say why"),
        # the stage summary was refused as well: there is no page, but Kubernetes' own reason
        (["inputs"], [workflow(("exit-handler-1(0).inputs(0).executor(0)", "Error", REFUSED))],
         f"failed: inputs\ninputs: {REFUSED}\n"),
    ],
)  # fmt: skip
def test_of_a_stage_that_failed_the_end_names_it_and_why(server, waiting, cluster, capsys, tasks, looks, said):
    server.states, server.tasks, cluster[:] = ["RUNNING"] * 4 + ["FAILED"], [(name, "FAILED") for name in tasks], looks
    assert waiting() == 1
    assert said in capsys.readouterr().out


def test_what_argo_recorded_names_the_stage_and_the_reason():
    recorded = json.loads((Path(__file__).parent / "recorded" / "argo.json").read_text())
    said = [list_failures({"status": {"nodes": {str(n): node for n, node in enumerate(case["nodes"])}}})
            for case in recorded["cases"]]  # fmt: skip
    assert {"train": ["pod deleted"]} in said and {"inputs": ["main: Error (exit code 1)"]} in said
    assert all(set(one) in ({"train"}, {"inputs"}) for one in said)
    assert parse_exit_code("main: Error (exit code 1)") == 1 and parse_exit_code("main: Error (exit code 143)") is None
    assert parse_exit_code("pod deleted") is None and not is_refused('pods "x" is forbidden: exceeded quota: must')
