"""submit and schedule against a server that speaks the v2beta1 API: what is sent, said and left behind."""

import json
import math
import time

import pytest
import yaml

from must_pipeline import DESCRIPTION
from must_pipeline.files import COMPILED
from tests.local_server import Answer, serving
from tests.pipeline.conftest import PARAMETERS, kubeconfig, refused
from tests.pipeline.kfp_server import HEALTHZ, HTML

SCHEDULE = {"name": "weekly", "cron": "0 3 * * 1", "parameters": PARAMETERS | {"only_new": True, "epochs": 5}}


@pytest.fixture(autouse=True)
def schedule(files):
    (files / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE))


def only(server, kind):
    (name,) = server.stored[kind]
    return name


@pytest.fixture
def scheduler(server, files, must_pipeline):
    return lambda *words: must_pipeline("schedule", *words, "--host", server.url, "--cluster", files / "cluster.yaml")


def test_a_schedule_is_made_and_applying_it_again_changes_nothing(server, scheduler, files, capsys):
    assert scheduler("apply", files / "schedule.yaml") == 0
    (made,) = server.stored["recurringruns"].values()
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["pipeline_version_reference"] == {"pipeline_id": only(server, "pipelines")}  # no version: the newest
    assert made["runtime_config"]["parameters"] == SCHEDULE["parameters"]
    assert (made["namespace"], made["service_account"]) == ("vision", "must")
    assert server.uploads == [COMPILED.read_bytes()]
    for kind in ("pipelines", "experiments"):  # what Kubeflow's page shows of them
        assert list(server.stored[kind].values())[-1]["description"].endswith(DESCRIPTION)
    assert "weekly: created, 0 0 3 * * 1 (UTC)" in capsys.readouterr().out
    before = {kind: dict(items) for kind, items in server.stored.items()}
    assert scheduler("apply", files / "schedule.yaml") == 0
    assert server.stored == before and len(server.uploads) == 1
    assert "weekly: is up to date (active)" in capsys.readouterr().out


@pytest.mark.parametrize("version, said", [
    ("2.17.0", ""), ("2.17.0 behind the page", ""),
    ("2.16.1", "this is Pipelines 2.16.1, and before 2.17 a schedule of the newest version starts runs without end"),
    ("2.16.1 behind the page", "this is Pipelines 2.16.1, and before 2.17 a schedule"),
    ("a list", "its version is unknown"),
    ("unknown", "its version is unknown (its page shows it at the bottom of the menu), and before 2.17 a schedule"),
])  # fmt: skip
def test_a_schedule_follows_the_newest_version_only_where_that_starts_no_runs_without_end(
    server, scheduler, files, capsys, version, said
):
    server.healthz = HEALTHZ[version]
    assert scheduler("apply", files / "schedule.yaml") == 0
    (made,) = server.stored["recurringruns"].values()
    newest = {"pipeline_id": only(server, "pipelines")}
    fixed = newest | {"pipeline_version_id": only(server, "versions")}
    assert made["pipeline_version_reference"] == (fixed if said else newest)
    out = capsys.readouterr().out
    assert (f"weekly: keeps this version of the pipeline: {said}" in out) if said else ("keeps" not in out)
    assert scheduler("apply", files / "schedule.yaml") == 0 and "is up to date" in capsys.readouterr().out
    server.healthz = HEALTHZ["2.17.0"]  # after an update of Kubeflow
    assert scheduler("apply", files / "schedule.yaml") == 0
    (made,) = server.stored["recurringruns"].values()
    assert made["pipeline_version_reference"] == newest


def test_a_change_replaces_the_schedule_and_leaves_others_and_its_pause_alone(server, scheduler, files):
    for name in ("a", "b", "weekly", "c"):  # more than a page
        (files / "other.yaml").write_text(yaml.safe_dump(SCHEDULE | {"name": name}))
        scheduler("apply", files / "other.yaml")
    scheduler("pause", "weekly")
    (files / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE | {"cron": "0 4 * * 2"}))
    assert scheduler("apply", files / "schedule.yaml") == 0
    runs = {run["display_name"]: run for run in server.stored["recurringruns"].values()}
    assert len(server.stored["recurringruns"]) == 4
    assert runs["weekly"]["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 2" and runs["weekly"]["mode"] == "DISABLE"
    assert runs["a"]["mode"] == "ENABLE"


def test_a_schedule_whose_run_is_going_on_is_not_deleted_under_it(server, scheduler, files, capsys):
    """Its workflow belongs to the schedule, and Kubernetes would delete it in the middle of training."""
    scheduler("apply", files / "schedule.yaml")
    (old,) = server.stored["recurringruns"].values()
    run = server.add("runs", {"recurring_run_id": old["recurring_run_id"], "namespace": "vision"})
    run["state"] = "RUNNING"
    (files / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE | {"cron": "0 4 * * 2"}))
    assert scheduler("apply", files / "schedule.yaml") == 0
    assert f"the run {run['run_id']} is going on and would end with the schedule" in capsys.readouterr().out
    assert len(server.stored["recurringruns"]) == 2 and old["mode"] == "DISABLE"
    assert scheduler("pause", "weekly") == scheduler("resume", "weekly") == 0
    modes = [one["mode"] for one in server.stored["recurringruns"].values()]
    assert modes == ["DISABLE", "ENABLE"]  # only the new one
    run["state"] = "SUCCEEDED"
    assert scheduler("apply", files / "schedule.yaml") == 0
    (left,) = server.stored["recurringruns"].values()
    assert left["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 2" and left["mode"] == "ENABLE"
    run |= {"recurring_run_id": left["recurring_run_id"], "state": "RUNNING"}
    capsys.readouterr()
    assert scheduler("delete", "weekly") == 0 and left["mode"] == "DISABLE"
    assert "deleted" not in capsys.readouterr().out and server.stored["recurringruns"]
    run["state"] = "FAILED"
    assert scheduler("delete", "weekly") == 0 and not server.stored["recurringruns"]


def test_an_update_that_broke_off_is_mended_by_applying_again(server, scheduler, files):
    scheduler("apply", files / "schedule.yaml")
    (files / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE | {"cron": "0 4 * * 2"}))
    (old,) = server.stored["recurringruns"]
    server.refuse = {("DELETE", old): (503, "later")}
    assert scheduler("apply", files / "schedule.yaml") == 2 and len(server.stored["recurringruns"]) == 2
    server.refuse = {}
    assert scheduler("apply", files / "schedule.yaml") == 0
    (left,) = server.stored["recurringruns"].values()
    assert left["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 2"


def test_another_pipeline_is_a_new_version_and_going_back_is_one_too(server, scheduler, files):
    changed = files / "changed.yaml"
    changed.write_text(COMPILED.read_text() + "\n")
    for file in (COMPILED, changed, COMPILED):
        assert scheduler("apply", files / "schedule.yaml", "--pipeline", file) == 0
    names = [version["name"] for version in server.stored["versions"].values()]
    assert len(set(names)) == 3 and names[2] == f"{names[0]}-2"  # the newest has the content that was applied last
    assert len(server.stored["pipelines"]) == len(server.stored["recurringruns"]) == 1


def test_listing_pausing_resuming_deleting(server, scheduler, files, capsys):
    scheduler("apply", files / "schedule.yaml")
    (made,) = server.stored["recurringruns"].values()
    assert scheduler("pause", "weekly") == 0 and made["mode"] == "DISABLE"
    capsys.readouterr()
    scheduler("list")
    line = capsys.readouterr().out
    assert "weekly" in line and "paused" in line and "newest version" in line
    assert scheduler("resume", "weekly") == 0 and made["mode"] == "ENABLE"
    assert scheduler("delete", "weekly") == 0 and not server.stored["recurringruns"]
    assert scheduler("delete", "weekly") == 0  # already gone
    assert "pause weekly: there is no such schedule; there are: none" in refused(capsys, scheduler, "pause", "weekly")


def test_a_run_is_submitted_waited_for_and_started_again(server, submitter, files, capsys):
    server.healthz = HEALTHZ["2.16.1"]  # which has all that a run needs
    assert submitter("--parameters", files / "run.yaml", "--wait", "--name", "try") == 0
    (made,) = server.stored["runs"].values()
    assert made["display_name"] == "try" and made["service_account"] == "must"
    versions = {"pipeline_id": only(server, "pipelines"), "pipeline_version_id": only(server, "versions")}
    assert made["pipeline_version_reference"] == versions
    assert made["runtime_config"]["parameters"] == PARAMETERS
    out = capsys.readouterr().out
    assert f"/#/runs/details/{made['run_id']}" in out and "succeeded" in out
    assert submitter("--parameters", files / "run.yaml") == 0 and len(server.uploads) == 1
    assert submitter("--again", made["run_id"]) == 0
    for key in ("pipeline_version_reference", "runtime_config", "experiment_id", "service_account"):
        assert list(server.stored["runs"].values())[2][key] == made[key]


def test_a_namespace_that_a_single_user_server_would_drop_is_refused(server, submitter, scheduler, files, capsys):
    server.users = None
    submit, apply = ["--parameters", files / "run.yaml"], ["apply", files / "schedule.yaml"]
    for command, words in ((submitter, submit), (scheduler, apply)):
        why = "namespace vision: this Kubeflow Pipelines is installed for a single user"
        assert why in refused(capsys, command, *words)
    assert not server.stored["runs"] and not server.stored["recurringruns"] and not server.uploads
    (files / "cluster.yaml").write_text("{service_account: must}")
    assert scheduler(*apply) == submitter(*submit) == 0


@pytest.mark.parametrize(
    "flags, environment, header",
    [
        (["--token-file", "token"], {}, ("Authorization", "Bearer secret")),
        ([], {"KFP_TOKEN": "secret"}, ("Authorization", "Bearer secret")),
        ([], {"KF_PIPELINES_SA_TOKEN_PATH": "token"}, ("Authorization", "Bearer secret")),  # a pod's own
        (["--cookie", "authservice_session=abc"], {}, ("Cookie", "authservice_session=abc")),
        (["--header", "X-Goog-Authenticated-User=me"], {}, ("X-Goog-Authenticated-User", "me")),
    ],
)
def test_the_usual_ways_to_log_in(server, scheduler, files, monkeypatch, flags, environment, header):
    monkeypatch.chdir(files)
    monkeypatch.delenv("KFP_TOKEN")
    server.users = None
    (files / "token").write_text("secret\n")
    server.wanted_header = header
    assert scheduler("list") == 2
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert scheduler("list", *flags) == 0


def test_what_the_server_refuses_is_one_line(server, scheduler, capsys, files):
    apply = ["apply", files / "schedule.yaml"]
    server.wanted_header = ("Authorization", "Bearer x")
    assert "401 Unauthorized: who are you?; log in with one of" in refused(capsys, scheduler, "list")
    server.wanted_header = None
    server.upload = lambda query, body: (400, {"error_message": "Failed to create a pipeline", "error_details": "x"})
    why = "400 Bad Request: Failed to create a pipeline; if no reason is given: may this account"
    assert why in refused(capsys, scheduler, *apply)
    del server.upload
    server.refuse = {("POST", "recurringruns"): (400, "Invalid cron")}
    assert "400 Bad Request: Invalid cron" in refused(capsys, scheduler, *apply)
    server.answer = lambda *_: (200, b"<html>log in here</html>", HTML)  # a login page in front
    assert "answers, but not as Kubeflow Pipelines does" in refused(capsys, scheduler, "list")


def test_the_version_that_was_applied_last_is_the_newest_also_within_a_second(server, scheduler, files, monkeypatch):
    clock = [1]  # of the server
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock[-1] + math.ceil(seconds)))
    changed = files / "changed.yaml"
    changed.write_text(COMPILED.read_text() + "\n")
    server.seconds = iter(lambda: clock[-1], None)
    scheduler("apply", files / "schedule.yaml")
    scheduler("apply", files / "schedule.yaml", "--pipeline", changed)
    moments = [version["created_at"] for version in server.stored["versions"].values()]
    assert moments.count(max(moments)) == 1
    count = len(server.uploads)
    assert scheduler("apply", files / "schedule.yaml", "--pipeline", changed) == 0 and len(server.uploads) == count


@pytest.mark.parametrize("allowed, known", [(None, ""), (False, " (kubectl's user may not)")])
def test_a_service_account_that_pipelines_refuses_is_explained(
    server, submitter, scheduler, files, capsys, monkeypatch, allowed, known
):
    """As 2.18 does it: 403 for an account that is not listed, or that the caller may not use."""

    def review(request):
        content = json.loads(request.body)
        asked.append(content["spec"]["resourceAttributes"])
        return Answer(201, content | {"status": {"allowed": allowed}})

    asked, submit, apply = [], ["--parameters", files / "run.yaml"], ["apply", files / "schedule.yaml"]
    with serving(review) as url:
        if allowed is not None:
            monkeypatch.setenv("KUBECONFIG", kubeconfig(files, url))
        for command, words, kind in ((submitter, submit, "runs"), (scheduler, apply, "recurringruns")):
            server.refuse = {("POST", kind): (403, "service account must is not allowed")}
            line = refused(capsys, command, *words)
            assert f"service account must only if you may `use` it{known}, by deploy/scheduler.yaml" in line
            assert "ALLOWEDSERVICEACCOUNTS" in line and not server.stored[kind]
    wanted = {"namespace": "vision", "verb": "use", "resource": "serviceaccounts", "name": "must"}
    assert asked[:1] == ([] if allowed is None else [wanted])
    (files / "cluster.yaml").write_text("{namespace: vision}")  # the default account
    server.refuse = {("POST", "runs"): (403, "no")}
    assert submitter(*submit) == 2 and "ask for access to the namespace" in capsys.readouterr().err


def test_a_server_that_cannot_be_reached_is_one_line(files, must_pipeline, capsys):
    words = ["--host", "http://127.0.0.1:9", "--cluster", files / "cluster.yaml"]
    assert must_pipeline("schedule", "list", *words) == 2
    assert "http://127.0.0.1:9: cannot be reached" in (line := capsys.readouterr().err.strip().splitlines()[-1])
    assert "kubectl port-forward" in line
    assert must_pipeline("submit", "--parameters", files / "run.yaml") == 2
    assert "--host is missing: the URL of Kubeflow Pipelines" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"crom": "x"}, "crom: unknown key; did you mean 'cron'?"),
        ({"cron": "daily"}, "cron 'daily': expected minute hour day month weekday"),
        ({"name": ""}, "name is missing"),
        ({"parameters": {"sorce": "x"}}, "no parameter 'sorce'; did you mean 'source'?"),
        ({"parameters": {"source": "x"}}, "parameters missing: classes, work_uri"),
        ({"parameters": PARAMETERS | {"epochs": "many"}}, "parameter epochs: expected a whole number, got 'many'"),
        ({"parameters": PARAMETERS | {"append": 1}}, "parameter append: expected true or false"),
        ({"parameters": PARAMETERS | {"settings": {"x": "y" * 10_000}}}, "Kubeflow Pipelines allows 10,000"),
    ],
)
def test_a_wrong_schedule_is_refused_before_anything_is_sent(server, scheduler, files, capsys, change, message):
    (files / "schedule.yaml").write_text(yaml.safe_dump(SCHEDULE | change))
    assert message in refused(capsys, scheduler, "apply", files / "schedule.yaml")
    assert not server.calls
