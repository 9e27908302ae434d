"""Vertex AI Pipelines with Google's own client: its checks of the compiled file, its messages, both our commands."""

import json
import re
import sys
from dataclasses import replace

import pytest
import yaml
from google.cloud import aiplatform, aiplatform_v1
from google.protobuf.json_format import ParseDict

from must_pipeline import schedule, submit
from must_pipeline.cli import call
from must_pipeline.cluster.config import Training
from must_pipeline.cluster.load import load_cluster
from must_pipeline.cluster.vertex_rules import ACCELERATORS
from must_pipeline.compile import compile_pipeline
from must_pipeline.files import CLUSTER, documents
from must_pipeline.vertex import wait
from must_pipeline.vertex.client import VertexAi
from must_pipeline.vertex.schedules import make_schedule

FILE = CLUSTER.with_name("clusters") / "vertex.yaml"
PARAMETERS = {
    "source": "gs://my-bucket/photos", "classes": "gs://my-bucket/classes.yaml", "work_uri": "gs://my-bucket/work",
    "settings": {"lr": 1e-5}, "epochs": 2, "append": True,
}  # fmt: skip
ACCOUNT = "must@my-project.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    file = tmp_path_factory.mktemp("vertex") / "must_pipeline.yaml"
    compile_pipeline(load_cluster(FILE), file)
    return file


@pytest.fixture
def command(server, compiled, tmp_path, monkeypatch):
    """Runs `must-pipeline submit` or `schedule` against the server; returns the exit code, and raises 2."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(PARAMETERS))
    monkeypatch.setattr(wait, "POLL", 0.02)
    monkeypatch.setattr("must.base.storage.retry.FIRST_PAUSE", 0.01)

    def run(module, *flags, pipeline=compiled, cluster=FILE):
        given = ["--pipeline", pipeline, "--cluster", cluster, "--host", server.url]
        monkeypatch.setattr(sys, "argv", ["must-pipeline", *map(str, [*flags, *given])])
        try:
            call(module.__name__.rpartition(".")[2])
        except SystemExit as end:
            if end.code == 2:
                raise
            return end.code
        return 0

    return run


@pytest.fixture
def file(tmp_path):
    content = {"name": "must-weekly", "cron": "0 3 * * 1", "parameters": PARAMETERS}
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "schedule.yaml"


def refused(capsys, run, *arguments, code=2, **named):
    with pytest.raises(SystemExit) as caught:
        run(*arguments, **named)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == code
    return line


# -- what Google's client checks by itself
def test_its_pipeline_job_takes_the_compiled_file(compiled):
    from google.auth.credentials import AnonymousCredentials

    named = {"project": "my-project", "location": "europe-west4", "credentials": AnonymousCredentials()}
    made = {"display_name": "x", "template_path": str(compiled), "pipeline_root": "gs://b/root", **named}
    job = aiplatform.PipelineJob(parameter_values=PARAMETERS, labels={"team": "vision"}, **made)
    assert job.runtime_config.gcs_output_directory == "gs://b/root" and dict(job.pipeline_spec)["root"]
    with pytest.raises(ValueError, match="parameter sorce is not found"):
        aiplatform.PipelineJob(parameter_values={"sorce": "x"}, **made)


def test_training_on_two_machines_is_a_custom_job_by_its_message(compiled):
    spec = documents(compiled.read_text())[0]
    values = {
        name: one.get("defaultValue")
        for name, one in spec["components"]["comp-train"]["inputDefinitions"]["parameters"].items()
    }
    (payload,) = [
        argument for argument in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["args"]
        if argument.startswith('{"')
    ]  # fmt: skip
    for name, value in values.items():  # as Vertex puts them in
        quoted = re.compile(rf"\{{\{{\$\.inputs\.parameters\['{name}'\]\}}\}}")
        text = value if isinstance(value, str) else json.dumps(value if value is not None else type_of(name))
        payload = quoted.sub(lambda _, text=text: text, payload)
    job = aiplatform_v1.CustomJob(ParseDict(json.loads(payload), aiplatform_v1.CustomJob()._pb))
    first, others = job.job_spec.worker_pool_specs
    assert (first.replica_count, others.replica_count) == (1, 1)
    for pool in (first, others):
        assert pool.machine_spec.machine_type == "a3-highgpu-8g" and pool.machine_spec.accelerator_count == 8
        assert pool.machine_spec.accelerator_type.name == "NVIDIA_H100_80GB"
        assert pool.container_spec.image_uri == "europe-west4-docker.pkg.dev/my-project/must/must-train:0.1.0"
        assert "{{$.json_escape[1]}}" in list(pool.container_spec.args) and pool.disk_spec.boot_disk_size_gb == 200
    assert job.job_spec.scheduling.strategy.name == "SPOT" and job.job_spec.scheduling.timeout.total_seconds() == 172800
    assert job.job_spec.service_account == ACCOUNT and dict(job.labels) == {"team": "vision"}


def type_of(name):
    return {"psc_interface_config": {}, "reserved_ip_ranges": []}.get(name, "")


def test_the_accelerators_are_those_of_its_messages():
    theirs = {one.name for one in aiplatform_v1.AcceleratorType if one.name.startswith("NVIDIA_")}
    assert ACCELERATORS.keys() == theirs - {"NVIDIA_TESLA_K80"}  # which is no more


def test_a_schedule_is_what_its_own_class_makes(server, compiled):
    cluster = load_cluster(FILE)
    vertex = VertexAi(cluster.vertex, server.url)
    asked = schedule.Schedule(name="weekly", cron="0 3 * * 1", parameters=PARAMETERS)
    ours = make_schedule(vertex, cluster, asked, compiled, "0 3 * * 1").create_pipeline_job_request
    job = aiplatform.PipelineJob(
        display_name="weekly", template_path=str(compiled), parameter_values=PARAMETERS,
        pipeline_root=cluster.vertex.pipeline_root, labels=dict(ours.pipeline_job.labels),
    )  # fmt: skip
    planned = aiplatform.PipelineJobSchedule(pipeline_job=job, display_name="weekly")
    theirs = planned._gca_resource.create_pipeline_job_request
    assert theirs.parent == ours.parent
    for field in ("pipeline_spec", "runtime_config", "labels"):
        assert getattr(theirs.pipeline_job, field) == getattr(ours.pipeline_job, field), field


# -- submit
def test_submit_starts_a_run_as_the_messages_have_it(server, command, tmp_path, capsys):
    command(submit, "--parameters", tmp_path / "run.yaml", "--name", "a run")
    (job,) = server.jobs.values()
    assert job["displayName"] == "a run" and job["serviceAccount"] == ACCOUNT
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://my-bucket/must/pipeline-root"
    assert job["runtimeConfig"]["parameterValues"] == PARAMETERS
    assert job["labels"]["team"] == "vision" and job["labels"]["experiment"] == "must"
    ((method, path, _),) = server.calls
    assert (method, path) == ("POST", "/v1/projects/my-project/locations/europe-west4/pipelineJobs")
    (run_id,) = server.jobs
    told = capsys.readouterr().out
    assert f"run {run_id} started: https://console.cloud.google.com/vertex-ai/locations/europe-west4/" in told


def test_the_same_again_has_the_runs_own_pipeline_and_parameters(server, command, tmp_path):
    command(submit, "--parameters", tmp_path / "run.yaml")
    (run_id,) = server.jobs
    command(submit, "--again", run_id)
    first, second = server.jobs.values()
    for field in ("pipelineSpec", "runtimeConfig", "serviceAccount", "labels"):
        assert first[field] == second[field], field
    (_, _, asked) = server.calls[-1]
    assert "deploymentConfig" not in asked["pipelineSpec"] and len(asked["labels"]) == 3  # not what Vertex added


@pytest.mark.parametrize(
    "states, tasks, code, message",
    [
        (["PENDING", "RUNNING", "SUCCEEDED"], [("shard", "RUNNING")], 0, "running shard"),
        (["RUNNING", "FAILED"], [("train", "FAILED"), ("exit-handler-1", "FAILED")], 1, "failed: train\n"),
        (["CANCELLED"], [], 1, "the run was ended by a person"),
    ],
)
def test_a_run_is_waited_for(server, command, tmp_path, capsys, states, tasks, code, message):
    server.states, server.tasks = states, tasks
    work = tmp_path / "run.yaml"
    assert command(submit, "--parameters", work, "--wait") == code and message in capsys.readouterr().out


def test_an_outage_during_the_wait_is_waited_out(server, command, tmp_path, monkeypatch, capsys):
    real, troubles = wait.VertexAi.job, [503, 503, 503]

    def job(self, run_id):
        server.faults = [troubles.pop()] if troubles else []
        return real(self, run_id)

    monkeypatch.setattr(wait.VertexAi, "job", job)
    assert command(submit, "--parameters", tmp_path / "run.yaml", "--wait") == 0
    assert "succeeded" in capsys.readouterr().out and not troubles


def test_what_cannot_run_there_is_told_before_anything_is_sent(server, command, tmp_path, capsys):
    kubernetes = tmp_path / "kubernetes.yaml"
    compile_pipeline(load_cluster(CLUSTER.with_name("clusters") / "gke.yaml"), kubernetes)
    run = tmp_path / "run.yaml"
    line = refused(capsys, command, submit, "--parameters", run, pipeline=kubernetes)
    assert "has 2 documents, so it was compiled for Kubernetes" in line
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(PARAMETERS | {"work_uri": "/data/work"}))
    line = refused(capsys, command, submit, "--parameters", tmp_path / "local.yaml")
    assert "parameter work_uri: '/data/work' is a path" in line
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(PARAMETERS | {"serve": "apply"}))
    line = refused(capsys, command, submit, "--parameters", tmp_path / "serve.yaml")
    assert "parameter serve: 'apply' asks the Kubernetes" in line
    other = tmp_path / "other.yaml"
    other.write_text(FILE.read_text().replace("tag: 0.1.0", "tag: 0.2.0"))
    assert "compiled with other images" in refused(capsys, command, submit, "--parameters", run, cluster=other)
    line = refused(capsys, command, submit, "--parameters", run, "--experiment", "My experiment")
    assert "is a label on Vertex" in line and not server.calls


@pytest.mark.parametrize("fault, message", [(403, "answers 403: in trouble"), (503, "answers 503: in trouble")])
def test_a_refusal_is_one_line(server, command, tmp_path, capsys, fault, message):
    server.faults = [fault] * 3
    assert message in refused(capsys, command, submit, "--parameters", tmp_path / "run.yaml")


def test_without_credentials_the_command_that_gives_them_is_told(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    line = refused(capsys, command, submit, "--parameters", tmp_path / "run.yaml")
    assert "there are no Google credentials here; log in with: gcloud auth" in line


# -- schedule
def test_a_schedule_is_made_once_changed_in_place_paused_resumed_and_deleted(server, command, file, capsys):
    command(schedule, "apply", file)
    command(schedule, "apply", file)
    (made,) = server.schedules.values()
    job = made["createPipelineJobRequest"]["pipelineJob"]
    assert made["cron"] == "TZ=UTC 0 3 * * 1" and made["maxConcurrentRunCount"] == "1"
    assert job["serviceAccount"] == ACCOUNT and job["runtimeConfig"]["parameterValues"] == PARAMETERS
    file.write_text(file.read_text().replace("epochs: 2", "epochs: 3").replace("0 3", "30 4"))
    command(schedule, "pause", "must-weekly")
    command(schedule, "apply", file)
    assert made["cron"] == "TZ=UTC 30 4 * * 1" and made["state"] == "PAUSED"
    changed = made["createPipelineJobRequest"]["pipelineJob"]["runtimeConfig"]["parameterValues"]
    assert changed["epochs"] == 3
    command(schedule, "resume", "must-weekly")
    assert made["state"] == "ACTIVE" and len(server.schedules) == 1
    command(schedule, "list")
    command(schedule, "delete", "must-weekly")
    command(schedule, "delete", "must-weekly")
    assert not server.schedules
    told = capsys.readouterr().out
    for part in ("created", "is up to date (active)", "paused", "updated", "resumed", "deleted", "nothing to do"):
        assert part in told
    assert re.search(r"must-weekly +active +TZ=UTC 30 4 \* \* 1", told)


def test_what_is_no_schedule_is_told(server, command, file, capsys):
    assert "there are: none" in refused(capsys, command, schedule, "pause", "must-weekly")
    for cron in ("30 0 3 * * 1", "'@weekly'"):
        file.write_text(re.sub("cron: .*", f"cron: {cron}", file.read_text()))
        assert "Vertex takes minute hour day month weekday" in refused(capsys, command, schedule, "apply", file)
    assert not server.schedules


def test_pages_of_schedules_are_all_looked_at(server, command, file):
    for name in ("a", "b", "must-weekly"):
        file.write_text(re.sub("name: .*", f"name: {name}", file.read_text(), count=1))
        command(schedule, "apply", file)
    command(schedule, "apply", file)
    assert [one["displayName"] for one in server.schedules.values()] == ["a", "b", "must-weekly"]


def test_one_machine_of_a_type_is_a_custom_job_too(tmp_path):
    cluster = replace(load_cluster(FILE), training=Training(as_="customjob"))
    compile_pipeline(cluster, tmp_path / "one.yaml")
    (spec,) = documents((tmp_path / "one.yaml").read_text())
    arguments = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["args"]
    job = json.loads(arguments[arguments.index("--payload") + 1])
    assert [pool["replica_count"] for pool in job["job_spec"]["worker_pool_specs"]] == [1]
