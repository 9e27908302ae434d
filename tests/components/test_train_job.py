"""Training as a TrainJob: what is asked for, and a launcher that follows it to its end."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from must.base.errors import TransientError
from must.base.program import Ended
from must.pods.notes import Facts
from must.pods.training import keep_plain
from must_components import train_job
from must_components.cluster import KubernetesApi
from must_components.train_job import JobLog, Launch, make_manifest
from must_pipeline.cluster import ClusterConfig as ClusterFile
from must_pipeline.cluster import load_cluster
from must_pipeline.placement import encode_nodes
from tests.common import ROOT
from tests.components.conftest import SUMMARY, completes, exit_code, fails, nodes, start_launcher, train
from tests.pipeline.compiled import CLUSTER

NUMBERS = keep_plain(SUMMARY)  # what Kubeflow takes


@pytest.mark.parametrize("name", ["gke", "openshift"])
def test_the_manifest_is_a_valid_trainjob_with_every_setting_of_the_cluster(name):
    from kubeflow_trainer_api import models  # a thousand models, which every process that collects tests would wait for

    cluster = load_cluster(CLUSTER.with_name("clusters") / f"{name}.yaml")
    manifest = make_manifest("must-train-1", nodes(name), "gs://b/jobs/r1", "r1", "digits")
    spec = manifest["spec"]
    assert models.TrainerV1alpha1TrainJob.from_dict(manifest).spec.to_dict() == spec  # no field that they do not know
    trainer, limits = spec["trainer"], spec["trainer"]["resourcesPerNode"]["limits"]
    assert spec["runtimeRef"]["name"] == cluster.training.runtime
    assert spec["activeDeadlineSeconds"] == cluster.timeouts["train"]
    assert trainer["image"] == cluster.image("must-train") and trainer["numNodes"] == cluster.training.nodes
    assert limits[cluster.gpu.accelerator] == str(cluster.gpu.count)
    assert limits["memory"] == cluster.resources["train"].memory_limit
    assert trainer["command"] == ["python", "-m", "must.model.distributed"]
    module = f"--nproc-per-node={cluster.training.processes} -m must.pods.training gs://b/jobs/r1"
    assert trainer["args"] == module.split()
    (node,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = node["template"]["spec"]["template"]
    metadata, pod = template["metadata"], template["spec"]
    assert node["name"] == "node" and pod["serviceAccountName"] == cluster.service_account
    assert pod["nodeSelector"] == cluster.gpu.node_selector
    assert [one["key"] for one in pod["tolerations"]] == [one.key for one in cluster.gpu.tolerations]
    assert [secret["name"] for secret in pod.get("imagePullSecrets", [])] == cluster.pull_secrets
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    if cluster.volume.claim:
        assert volumes[mounts[cluster.volume.mount]]["persistentVolumeClaim"]["claimName"] == cluster.volume.claim
    for labels in (manifest["metadata"]["labels"], metadata["labels"]):
        assert cluster.labels.items() <= labels.items()
    for marks in (metadata["labels"], metadata["annotations"]):
        assert marks["sidecar.istio.io/inject"] == "false"


def test_a_job_is_followed_to_its_end_and_its_model_fetched(api, work, capfd):
    def on_start(api, name):
        api.outage = 6  # the API server is away for a moment
        completes(work, *(f"step {number}" for number in range(30)))(api, name)

    api.on_start = on_start
    trained = train(work, facts := Facts(), model_name="digits-v2.")
    shown = capfd.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("step ")] == [f"step {number}" for number in range(30)]
    assert trained["training"] == NUMBERS and len(trained["bundle"]["sha256"]) == 64
    assert (work.parent / "bundle" / "model.safetensors").exists()
    job = yaml.safe_load((work / "jobs" / "r1" / "job.yaml").read_text())
    assert job["train"]["lr"] == 1e-3 and job["train"]["checkpoints"].startswith(f"{work}/checkpoints/")
    assert Path(job["train"]["classifier"]).read_bytes() == b"weights"
    (name,) = api.jobs
    assert "10 steps on 2 nodes" in facts.result and facts.trainjob == name and facts.checkpoints
    labels = api.jobs[name]["metadata"]["labels"]
    assert (labels["pipeline/runid"], labels["must/model"]) == ("r1", "digits-v2")  # a label ends in a letter or digit


@pytest.mark.parametrize("code, hint", [(403, "give the service account the role in deploy/"), (422, "")])
def test_a_job_that_is_refused_is_one_line(api, work, code, hint):
    api.refuse["POST", "/trainjobs"] = code
    with pytest.raises(ValueError, match=rf"could not be submitted \({code}: trainjobs is forbidden.*{hint}"):
        train(work)


def test_gpus_of_any_maker_and_a_time_limit_are_in_the_manifest():
    made = make_manifest("must-train-1", nodes("eks") | {"accelerator": "amd.com/gpu", "cpu": ""}, "job", "r1", "")
    limits = made["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits["amd.com/gpu"] == "8" and "cpu" not in limits
    assert made["spec"]["activeDeadlineSeconds"] == 259_200
    free = make_manifest("must-train-1", encode_nodes(ClusterFile()), "job", "r1", "")
    assert free["spec"]["activeDeadlineSeconds"] == ClusterFile().retries.window  # it ends when nobody watches it


@pytest.mark.parametrize("killed", [False, True], ids=["by one launcher", "which is killed after it has deleted it"])
def test_a_retry_replaces_a_failed_job_when_all_of_it_is_gone(api, work, failed_job, capfd, killed):
    """Beside an old JobSet Trainer builds none, and old pods would still write checkpoints. Of a job that is deleted in
    the foreground, Trainer 2.3 makes its JobSet again and again (trainjob_controller.go)."""
    api.lag, api.on_start = 4, completes(work, "going on after step 5")
    if killed:
        KubernetesApi.of_this_pod().delete_job(api.jobs[failed_job])
    assert train(work)["training"] == NUMBERS
    assert api.deleted == [(failed_job, "Background")]
    assert [job["metadata"]["name"] for job in api.created] == [failed_job] * 2
    assert killed or "failed before; starting it again from its checkpoints" in capfd.readouterr().out


def test_pods_that_do_not_end_are_another_try_and_no_second_training(api, work, failed_job, monkeypatch):
    """Such as on a node that is lost."""
    api.lag = 10**6
    monkeypatch.setattr(train_job, "GONE", 0.2)
    with pytest.raises(TransientError, match=f"pods of an earlier TrainJob {failed_job} have not ended"):
        train(work)
    assert len(api.created) == 1


def test_the_next_launcher_follows_the_job_of_a_lost_one_or_takes_its_result(api, work, capfd, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Launch, "follow", Mock(side_effect=SystemExit(137)))
        train(work)
    (name,) = api.jobs
    completes(work)(api, name)
    assert train(work)["training"] == NUMBERS and f"following the TrainJob {name}" in capfd.readouterr().out
    assert train(work)["training"] == NUMBERS and f"following the TrainJob {name} (Complete)" in capfd.readouterr().out
    assert len(api.created) == 1 and not api.deleted
    shutil.rmtree(work / "jobs" / "r1" / "bundle")
    api.on_start = completes(work)
    train(work)
    assert len(api.created) == 2 and "its model is gone" in capfd.readouterr().out


def test_each_run_has_its_own_job(api, work, monkeypatch):
    for run in ("r1", "r2"):
        monkeypatch.setenv("MUST_RUN_ID", run)
        api.on_start = fails("no")
        assert exit_code(work) == 1
    first, second = (job["metadata"] for job in api.created)
    assert first["name"] != second["name"] and second["labels"]["pipeline/runid"] == "r2" and not api.deleted
    assert len(f"{first['name']}-node-0-0") <= 63


@pytest.mark.parametrize("labels", [None, {"pipeline/runid": "r2"}])
def test_a_job_of_another_run_is_neither_followed_nor_deleted(api, work, failed_job, labels):
    api.jobs[failed_job]["metadata"]["labels"] = labels
    with pytest.raises(ValueError, match=f"there is a TrainJob {failed_job} of another run .* it was not changed"):
        train(work)
    assert failed_job in api.jobs and not api.deleted


def test_a_create_whose_answer_was_lost_is_no_error(api, work, monkeypatch, capfd):
    """Nothing there when it looks, 409 when it creates."""
    api.on_start = completes(work)
    train(work)
    real = Launch.get
    monkeypatch.setattr(Launch, "get", lambda self: monkeypatch.setattr(Launch, "get", real))
    monkeypatch.setattr(Launch, "wait_until_gone", lambda self: None)
    train(work)
    assert len(api.created) == 1


def test_a_trainer_that_drops_our_patches_is_too_old(api, work):
    """It would train without service account, pool, tolerations, volumes and deadline."""
    api.version = "2.1"
    with pytest.raises(ValueError, match=r"Kubeflow Trainer 2\.2 or newer is needed"):
        train(work)
    assert len(api.deleted) == 1


@pytest.mark.parametrize(
    "nodes_end, code, title",
    [
        ([(0, 1, "RuntimeError: CUDA out of memory")], 1, "node 0, exit code 1"),
        ([(1, 2, "must train: --lr -1: must be above 0")], 2, "node 1, exit code 2"),
        ([(0, 73, "another run is writing")], 73, "node 0, exit code 73"),
        ([(0, 75, "saved")], 75, "node 0, exit code 75"),
        ([(0, 75, "a peer is gone"), (1, 1, "RuntimeError: CUDA error")], 1, "node 1, exit code 1"),
    ],
    ids=["an error", "wrong input", "held", "saved", "the first one explains it"],
)
def test_a_failed_job_is_told_with_its_last_lines_events_and_code(api, work, capfd, nodes_end, code, title):
    def on_start(api, name):
        for node, ended, line in nodes_end[:-1]:
            api.pods[name][node].say(line)
            api.pods[name][node].code = ended
        node, ended, line = nodes_end[-1]
        said = {"kind": "UserError", "text": line.removeprefix("must train: ")}
        api.pods[name][node].message = json.dumps(said) + "\n"  # as Kubernetes reads it from /dev/termination-log
        fails("step 1", line, code=ended, node=node)(api, name)

    api.on_start = on_start
    with pytest.raises(Ended) as end:
        train(work)
    node, said = nodes_end[-1][0], nodes_end[-1][2]
    assert end.value.code == code and end.value.reason == f"node {node}: {said.removeprefix('must train: ')}"
    error = capfd.readouterr().err
    assert "failed (ReachedMaxRestarts: jobset failed" in error and f"Last lines of {title}:\n  step 1\n  " in error
    assert f"  {nodes_end[-1][2]}\n" in error and "OOMKilled: Container node was killed" in error


def test_the_deadline_is_the_stages_time_limit(api, work, capfd):
    """Exit code 124, which is not retried."""
    api.on_start = lambda api, name: api.conclude(name, "Failed", "DeadlineExceeded", "deadline exceeded")
    assert exit_code(work) == 124 and "failed (DeadlineExceeded: deadline exceeded)" in capfd.readouterr().err


def test_under_another_runtime_the_log_of_the_last_try_is_told(api, work, capfd, monkeypatch):
    """As with Trainer's own torch-distributed, which restarts in place; in the end pods and logs are gone."""

    def follow(cluster, name):
        followers.append(JobLog(cluster, name))
        return followers[0]

    def on_start(api, name):
        for life in range(7):
            api.pods[name][0].say(f"life {life}")
            followers[0].print_new()
            api.exit(name, 0, 1)

    followers, api.on_start = [], on_start
    monkeypatch.setattr(train_job, "JobLog", follow)
    assert exit_code(work, nodes=nodes() | {"runtime": "torch-distributed"}) == 1
    captured = capfd.readouterr()
    assert [line for line in captured.out.splitlines() if line.startswith("life")] == [f"life {n}" for n in range(7)]
    assert captured.out.count("was restarted in place]") == 6 and "failed (FailedJobs" in captured.err
    assert "Last lines of rank 0:" in captured.err and "  life 6\n" in captured.err


def test_every_line_is_printed_once(api, failed_job, capfd):
    """Kubernetes gives the log by whole seconds."""
    node, follower = api.pods[failed_job][0], JobLog(KubernetesApi.of_this_pod(), failed_job)
    capfd.readouterr()
    for lines in ([], ["step 1", "step 1"], [], ["25%\r50%", "step 2"]):
        node.say(*lines)
        follower.print_new()
    assert capfd.readouterr().out == "no\nstep 1\nstep 1\n25%\r50%\nstep 2\n" and list(follower.last)[-1] == "step 2"


def test_a_job_that_somebody_deletes_is_an_error_that_may_be_tried_again(api, work, capfd):
    api.on_start = lambda api, name: api.forget(name)
    assert exit_code(work) == 1 and "was deleted by another program; its checkpoints stay" in capfd.readouterr().err


def test_a_job_in_a_queue_is_waited_for(api, work, capfd):
    def admit():
        while sum(method == "GET" and "/trainjobs/" in path for method, path in api.calls) < 5:
            time.sleep(0.01)
        (name,) = api.jobs
        api.start(name)

    api.queued, api.on_start = True, completes(work)
    threading.Thread(target=admit, daemon=True).start()
    assert train(work)["training"] == NUMBERS
    assert capfd.readouterr().out.count("waits in its queue; its time does not count yet") == 1


@pytest.mark.parametrize(
    "spec, run_id, deleted",
    [
        ({"activeDeadlineSeconds": 0}, "r1", True),
        ({"shutdown": "Terminate"}, "r1", True),
        (None, "r1", True),
        ({}, "r1", False),
        ({"activeDeadlineSeconds": 86400}, "r1", False),
        ({"activeDeadlineSeconds": 0}, "r2", False),
    ],
    ids=["terminated", "shut down", "deleted", "only this pod", "only this pod, run with a limit", "another run's job"],
)
def test_a_launcher_that_is_stopped_takes_the_job_along_if_its_run_is_over(
    api, work, run, monkeypatch, capfd, spec, run_id, deleted
):
    def stopped(self):
        (job,) = api.jobs.values()
        job["metadata"]["labels"]["pipeline/runid"] = run_id
        signal.raise_signal(signal.SIGTERM)

    find = Launch.find_or_create
    monkeypatch.setattr(Launch, "follow", stopped)
    run["spec"] = spec
    if spec is None:
        monkeypatch.setattr(Launch, "find_or_create", lambda self: (find(self), api.workflows.clear()))
    assert exit_code(work) == 75 and (api.deleted != []) is deleted and (api.jobs == {}) is deleted
    said = "was deleted; its checkpoints stay" if deleted else "continues; the next launcher follows it"
    said = "belongs to the run r2 and was not deleted" if run_id == "r2" else said
    assert said in capfd.readouterr().err


def test_a_real_signal_ends_a_launcher_and_leaves_the_job_to_the_next_one(api, work):
    with start_launcher(api, work, index_sha256="sha", settings={}, nodes=nodes()) as process:
        try:
            assert "submitted the TrainJob" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 75 and len(api.jobs) == 1 and not api.deleted
    assert "continues; the next launcher follows it" in output


def test_the_role_in_deploy_allows_what_the_launcher_asks_for(api, work, run):
    api.on_start = fails("no")
    assert exit_code(work) == 1
    api.on_start = completes(work, "step 1")
    train(work)
    rules = []
    for file in ("trainjobs.yaml", "service-account.yaml"):
        for document in yaml.safe_load_all((ROOT / "deploy" / file).read_text()):
            rules += document.get("rules", [])
    used = set()
    for method, path in set(api.calls):
        group, resource, verb = asked(method, path)
        allowed = [r for r in rules if group in r["apiGroups"] and resource in r["resources"] and verb in r["verbs"]]
        assert allowed, (method, path)
        used.add((group, resource, verb))
    assert {("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "get", "delete")} <= used


def asked(method, path):
    """An API call as RBAC sees it: group, resource, verb."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    rest = rest[2:] if rest[0] == "namespaces" else rest
    named = len(rest) > 1
    resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
    return group, resource, {"GET": "get" if named else "list", "POST": "create", "DELETE": "delete"}[method]
