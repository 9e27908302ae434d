"""submit: what kfp.Client sends to a server that answers as the recorded Pipelines 2.17, what is said, what stays."""

import json
import re
from datetime import UTC, datetime

import pytest
import yaml

from must.pods.notes import Failure, Note, write_note
from must_pipeline import submit
from must_pipeline.cluster import ClusterConfig
from must_pipeline.compile import MADE_FOR, identify_cluster
from must_pipeline.schedule import find_next_time
from tests.local_server import Answer
from tests.pipeline.compiled import COMPILED, LABELLING
from tests.pipeline.conftest import PARAMETERS
from tests.pipeline.kfp_server import CALLS, RUNS

HTML = {"Content-Type": "text/html"}
CRON = ("--cron", "0 3 * * 1", "--name", "weekly")


def compile_for(folder, file=COMPILED, **cluster):
    """As `compile` would write it. Returns cluster.yaml and the compiled file."""
    (folder / "cluster.yaml").write_text(json.dumps(cluster))
    line = json.dumps(identify_cluster(ClusterConfig(**cluster)))
    (folder / file.name).write_text(re.sub(rf"(?m)^{MADE_FOR}.*$", f"{MADE_FOR}{line}", file.read_text()))
    return folder / "cluster.yaml", folder / file.name


@pytest.fixture
def compiled(files):
    return compile_for(files, namespace="vision", service_account="must")[1]


@pytest.fixture
def submitter(server, compiled, must_pipeline):
    return lambda *words: must_pipeline("submit", "--pipeline", compiled, "--host", server.url, *words)


@pytest.fixture
def start(submitter, files):
    return lambda *words: submitter("--parameters", files / "run.yaml", *words)


def only(server, kind):
    (made,) = server.stored[kind].values()
    return made


def refused(capsys, command, *words, code=2):
    """The one line that a command prints which ends with `code`."""
    assert command(*words) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_has_its_version_its_parameters_with_their_types_and_can_be_repeated(
    server, start, submitter, files, capsys
):
    values = PARAMETERS | {"epochs": 5, "append": True, "settings": {"lr": 0.5, "seed": 1}}
    (files / "run.yaml").write_text(yaml.safe_dump(values | {"epochs": "5"}))
    assert start("--name", "try") == 0
    made, version = only(server, "runs"), only(server, "versions")
    assert (
        made["runtime_config"]["parameters"] == values and type(made["runtime_config"]["parameters"]["epochs"]) is int
    )
    assert made["pipeline_version_reference"] == {
        "pipeline_id": version["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]
    }  # fmt: skip
    assert (made["display_name"], made["service_account"]) == ("try", "must")
    assert server.uploads == [(files / COMPILED.name).read_bytes()]
    for kind in ("pipelines", "experiments"):
        assert only(server, kind)["namespace"] == "vision"
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1:] == [f"run {made['run_id']} started: {server.url}/#/runs/details/{made['run_id']}"]
    assert not shown.err  # kfp warns at each construction
    assert submitter("--again", made["run_id"]) == 0 and start() == 0
    again, once_more = list(server.stored["runs"].values())[1:]
    assert again["display_name"] == "try again" and re.match(r"must \d{4}-", once_more["display_name"])
    for key in ("pipeline_version_reference", "runtime_config", "experiment_id", "service_account"):
        assert again[key] == made[key]
    assert len(server.uploads) == 1 and "is there already" in capsys.readouterr().out
    (files / COMPILED.name).write_bytes(COMPILED.read_bytes())  # compiled without --cluster
    assert start() == 0 and "`registry` is empty: the images' names work only on nodes" in capsys.readouterr().err


def test_a_changed_file_is_a_new_version_and_the_second_pipeline_is_one_of_its_own(server, start, compiled, files):
    first = compiled.read_text()
    for text in (first, first + "\n", first):
        compiled.write_text(text)
        assert start() == 0
    (files / "run.yaml").write_text(
        "{source: gs://b/x, registry_uri: gs://b/r, output: gs://b/l.csv, work_uri: gs://b/w}"
    )
    _, label = compile_for(files, LABELLING, namespace="vision")
    assert start("--pipeline", label) == 0
    assert len(server.uploads) == 3
    assert [one["display_name"] for one in server.stored["pipelines"].values()] == ["must", "must-label"]
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in server.stored["runs"].values()]
    assert used[0] == used[2] and len(set(used)) == 3


def test_a_schedule_keeps_its_version_and_every_line_ends_with_state_and_next_time(
    server, start, submitter, compiled, capsys
):
    for name in ("a", "b", "c"):  # more than a page
        assert start("--cron", "0 3 * * 1", "--name", name) == 0
    capsys.readouterr()

    def line(command, *words):
        assert command(*words) == 0
        return capsys.readouterr().out.splitlines()[-1]

    moment = f"{find_next_time('0 3 * * 1', datetime.now(UTC)):%Y-%m-%d %H:%M} UTC"
    assert (said := line(start, *CRON)).endswith(f"; active, next {moment}") and said.startswith("weekly: made. ")
    made = list(server.stored["recurringruns"].values())[3]
    recorded = CALLS["a recurring run made"]
    version = only(server, "versions")["pipeline_version_id"]
    assert f"keeps the version {version}" in said
    assert made["pipeline_version_reference"]["pipeline_version_id"] == version
    for key in ("max_concurrency", "no_catchup", "mode", "trigger"):
        assert type(recorded["body"][key])(made[key]) == recorded["body"][key]
    assert made["runtime_config"]["parameters"] == PARAMETERS and made["service_account"] == "must"
    before = {kind: dict(items) for kind, items in server.stored.items()}
    assert line(start, *CRON).startswith("weekly: is up to date. ") and server.stored == before
    made |= {"mode": "DISABLE", "status": "DISABLED"}  # a person, on Kubeflow's page
    compiled.write_text(compiled.read_text() + "\n")
    said = line(start, *CRON)
    assert said.startswith("weekly: replaced; it was paused and stays so. ")
    paused = f"; paused, on Kubeflow's page it is resumed; then next {moment}"
    assert said.endswith(paused) and line(submitter, "--cron", "list", "--name", "weekly").endswith(paused)
    (now,) = (one for one in server.stored["recurringruns"].values() if one["display_name"] == "weekly")
    assert now["mode"] == "DISABLE" and now["pipeline_version_reference"]["pipeline_version_id"] != version
    assert line(submitter, "--cron", "off", "--name", "weekly") == "weekly: removed, no next time"
    assert line(submitter, "--cron", "off", "--name", "weekly") == "weekly: there is no such schedule"
    assert submitter("--cron", "list") == 0
    assert [one.partition(":")[0] for one in capsys.readouterr().out.splitlines()] == ["a", "b", "c"]


def test_a_schedule_with_kubeflows_default_account_is_up_to_date(server, start, files, capsys):
    """Kubeflow writes the account's name into a schedule that was made without one."""
    compile_for(files, namespace="vision")
    assert start(*CRON) == start(*CRON) == 0
    assert only(server, "recurringruns")["service_account"] == "must"
    assert capsys.readouterr().out.splitlines()[-1].startswith("weekly: is up to date. ")


def test_a_schedule_whose_run_is_in_progress_is_neither_replaced_nor_deleted(server, start, submitter, capsys):
    """Kubernetes would delete the run in the middle of training. Then there would be two of one name, or none."""
    start(*CRON)
    made, more = only(server, "recurringruns"), {"display_name": "x", "state": "RUNNING"}
    run = server.add("runs", recurring_run_id=made["recurring_run_id"], experiment_id=made["experiment_id"], **more)
    capsys.readouterr()
    line = refused(capsys, start, "--cron", "0 4 * * 1", "--name", "weekly", code=73)
    assert f"its run {run['run_id']} is in progress" in line and "; active, next " in line
    assert only(server, "recurringruns") == made and made["mode"] == "ENABLE"
    assert submitter("--cron", "off", "--name", "weekly") == 0 and made["mode"] == "DISABLE"
    assert "do the same again when it is over" in (said := capsys.readouterr().out) and "; paused, " in said
    run["state"] = "FAILED"
    assert submitter("--cron", "off", "--name", "weekly") == 0 and not server.stored["recurringruns"]


@pytest.mark.parametrize("line, moment", [
    ("0 3 * * 1", "2026-12-07 03:00"), ("5-10/2 1 * * *", "2026-12-04 01:05"), ("20 5 * * *", "2026-12-04 05:20"),
    ("0 0 29 2 *", "2028-02-29 00:00"), ("0 0 1,15 * 5", "2026-12-04 00:00"),  # a day or a weekday
    ("60 3 * * *", "Bad minute"), ("0 3 * *", "expected minute hour"), ("0 0 30 2 *", "Bad day"),
])  # fmt: skip
def test_the_next_time_is_that_of_cron(line, moment):
    now = datetime(2026, 12, 3, 5, 20, tzinfo=UTC)
    if moment.startswith("20"):
        assert f"{find_next_time(line, now):%Y-%m-%d %H:%M}" == moment
    else:
        with pytest.raises(ValueError, match=moment):
            find_next_time(line, now)


@pytest.mark.parametrize(
    "name, code, line",
    [
        ("success", 0, "succeeded"),
        ("retried", 0, "succeeded"),
        ("wrong input", 1, "failed: classifier"),
        ("terminated", 1, "the run was ended by a person"),
        ("quota", 1, "failed"),
    ],
)
def test_a_run_is_followed_to_its_end_and_only_stages_are_named(server, start, capsys, name, code, line):
    tasks, state = RUNS[name]["task_details"], RUNS[name]["state"]
    running = [(task, "RUNNING") for task, _ in tasks if "summary" not in task] + [("iteration-item", "RUNNING")]
    canceling = [("CANCELING", running), ("CANCELING", [])] if name == "terminated" else []
    server.play = [("PENDING", []), ("RUNNING", running[:3]), ("RUNNING", running), *canceling, (state, tasks)]
    assert start("--wait") == code
    out = capsys.readouterr().out
    assert line in out and "The page about it is the artifact of the stage summary." in out
    said = [one.split()[1:] for one in out.splitlines() if re.match(r"\d\d:", one)]
    words = {word for words in said for word in words[1:]}
    assert words <= submit.STAGES and (words or name == "quota") and words.isdisjoint(["iteration-item", "root"])
    assert sum(words[0] == "canceling" for words in said) == bool(canceling)


def test_the_summary_is_printed_where_the_notes_can_be_read(server, start, files, capsys):
    (files / "run.yaml").write_text(yaml.safe_dump(PARAMETERS | {"work_uri": f"{files}/work"}))
    server.play = [("FAILED", RUNS["wrong input"]["task_details"])]
    note = Note("classifier", "failed", code=2, error=Failure("UserError", "no such model"))
    add = server.add
    server.add = lambda kind, **values: (
        (made := add(kind, **values))
        | (write_note(f"{files}/work", made["run_id"], note) or {} if kind == "runs" else {})
    )
    assert start("--wait") == 1
    out = capsys.readouterr().out
    assert "\nRun failed: classifier: the input is wrong\n\nWhy: no such model" in out and "\nfailed: " not in out
    assert "\nCommand to go on: must-pipeline submit --again " in out


def test_what_passes_by_does_not_end_the_following_and_silence_does(server, start, files, monkeypatch, capsys):
    (files / "kfp.yaml").write_text("existing_token: first")
    server.token, one = "first", server.one

    def expire(method, kind, *rest):
        """At the first look at the run: the token is replaced, and the server is busy."""
        if kind == "runs" and server.token == "first":
            server.token = "second"
            (files / "kfp.yaml").write_text("existing_token: second")
            server.faults += [Answer(0)] * 4 + [Answer(502, b"<html>", HTML)] * 3
        return one(method, kind, *rest)

    server.one = expire
    assert start("--wait", "--client", files / "kfp.yaml") == 0 and server.token == "second" and not server.faults
    capsys.readouterr()
    monkeypatch.setattr(submit, "PATIENCE", 0)
    server.token = "third"
    server.one = lambda method, kind, *rest: server.faults.append(Answer(502, b"", HTML)) or one(method, kind, *rest)
    server.play = [("RUNNING", [])]
    (files / "kfp.yaml").write_text("existing_token: third")
    assert start("--wait", "--client", files / "kfp.yaml") == 75 and "502" in capsys.readouterr().err


def test_what_the_server_refuses_is_one_line(server, start, files, capsys):
    server.token = "mine"
    line = refused(capsys, start)
    assert "401 Unauthorized: " in line and "log in with --client FILE, by an argument of kfp.Client" in line
    (files / "kfp.yaml").write_text("existing_tokn: mine")
    assert "takes no 'existing_tokn'; did you mean 'existing_token'?" in refused(
        capsys, start, "--client", files / "kfp.yaml"
    )
    server.token = None
    server.refuse = {("POST", "/upload_version"): "multi-user, another's namespace"}
    assert start() == 2 and "uploaded" not in capsys.readouterr().out
    for name, said in {
        "a run with a parameter of the wrong type": "400 Bad Request: ",
        "a run of a version that is not there": "500 Internal Server Error: ",  # of a run this is no passing fault
        "multi-user, another's namespace": "docs/kubeflow.md, step 2",
    }.items():
        server.refuse = {("POST", "/runs"): name}
        assert said in refused(capsys, start)
    server.refuse = {}
    server.faults = [Answer(200, b"<html>log in here</html>", HTML)]
    assert "answers text/html, not as Kubeflow Pipelines does: a login page?" in refused(capsys, start)
    server.single_user = True
    server.stored["experiments"].clear()
    assert "namespace vision: this Kubeflow Pipelines is installed for a single user" in refused(capsys, start)
    assert not server.stored["runs"]
    assert "http://127.0.0.1:9: cannot be reached" in refused(capsys, start, "--host", "http://127.0.0.1:9", code=75)


def test_a_file_of_another_cluster_or_none_is_refused_before_anything_is_sent(server, start, files, capsys):
    """A packaged file of the default cluster was taken in its place, without a word."""
    assert start("--cluster", files / "cluster.yaml") == 0
    (files / "cluster.yaml").write_text("{namespace: vision, service_account: must, registry: ghcr.io/team}")
    server.calls.clear()
    line = refused(capsys, start, "--cluster", files / "cluster.yaml")
    assert "was compiled for another cluster.yaml than" in line and "compile it again" in line
    assert "no such file; make it with must-pipeline compile" in refused(capsys, start, "--pipeline", files / "none")
    (files / "other.yaml").write_text(COMPILED.read_text().replace(MADE_FOR, "# "))
    assert "was not made by must-pipeline compile" in refused(capsys, start, "--pipeline", files / "other.yaml")
    assert "--name is missing" in refused(capsys, start, "--cron", "0 3 * * 1")
    assert "--again takes the parameters of that run" in refused(capsys, start, "--again", "a-run")
    assert not server.calls


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sorce": "x"}, "no parameter 'sorce'; did you mean 'source'?"),
        ({"gate_settings": {"min_gian": 0.1}}, "gate_settings.min_gian: unknown"),
        ({"classes": None}, "parameters missing: classes"),
        ({"epochs": "many"}, "parameter epochs: expected a whole number, got 'many'"),
        ({"append": 1}, "parameter append: expected true or false"),
        ({"settings": {"x": "y" * 10_000}}, "Kubeflow Pipelines allows 10,000"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_sent(server, start, files, capsys, change, message):
    values = {name: value for name, value in (PARAMETERS | change).items() if value is not None}
    (files / "run.yaml").write_text(yaml.safe_dump(values))
    for words in ((), CRON):
        assert message in refused(capsys, start, *words)
    assert not server.calls
