"""Training on several nodes: the TrainJob that is asked for, and the launcher through all that happens to one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api import models

from components.train_job import launcher
from components.train_job.launcher import train_on_nodes
from must.run.notes import read_notes
from pipeline.cluster import load_cluster
from pipeline.compile import CLUSTER
from pipeline.nodes import nodes_of
from tests.components.kube_api import Api
from tests.promote.bundles import make_bundle

ROOT = Path(__file__).parents[2]
SUMMARY = {"steps": 10, "images_per_s": 100.0}


@pytest.fixture
def api(monkeypatch, tmp_path):
    made = Api()
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(launcher, "POLL", 0.05)
    yield made
    made.server.shutdown()


@pytest.fixture
def work(tmp_path):
    (tmp_path / "classifier").write_bytes(b"weights")
    return tmp_path / "work"


def nodes(name="gke"):
    return nodes_of(load_cluster(CLUSTER.with_name("clusters") / f"{name}.yaml"))


def train(work, **changes):
    arguments = {"nodes": nodes(), "settings": {"lr": 1e-3}, "preset": "digits"} | changes
    return train_on_nodes(str(work), "sha", str(work.parent / "classifier"), str(work.parent / "output"), **arguments)


def job_name(work):
    (job,) = (work / "jobs").iterdir()
    return f"must-{job.name}"


def publish(work):
    """What the main process of a real job leaves."""
    (job,) = (work / "jobs").iterdir()
    if not (job / "bundle").exists():
        make_bundle(job / "bundle")
        description = json.loads((job / "bundle" / "model.json").read_text())
        description["provenance"]["summary"] = SUMMARY
        (job / "bundle" / "model.json").write_text(json.dumps(description))


def completes(work, *lines):
    def on_create(api, name):
        def live():
            for line in lines:
                api.pods[name][0].say(line)
                time.sleep(0.01)
            publish(work)
            api.finish(name)

        threading.Thread(target=live, daemon=True).start()

    return on_create


def fails(*lines):
    def on_create(api, name):
        api.pods[name][0].say(*lines)
        api.note("Pod", api.pods[name][0].name, "OOMKilled", "Container node was killed")
        api.finish(name, "Failed", "a node was lost")

    return on_create


@pytest.mark.parametrize("name", ["gke", "openshift"])
def test_the_manifest_is_a_valid_trainjob_with_every_setting_of_the_cluster(api, work, name):
    api.on_create = completes(work)
    cluster = load_cluster(CLUSTER.with_name("clusters") / f"{name}.yaml")
    train(work, nodes=nodes(name))
    (manifest,) = api.created
    job = models.TrainerV1alpha1TrainJob.from_dict(manifest)
    assert job.spec.to_dict() == manifest["spec"]  # nothing that the published models do not know
    assert job.spec.runtime_ref.name == cluster.training.runtime
    assert job.spec.active_deadline_seconds == cluster.timeouts["train"]
    trainer = job.spec.trainer
    assert trainer.image == cluster.image("must-train") and trainer.num_nodes == cluster.training.nodes
    limits = manifest["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits[cluster.gpu.accelerator] == str(cluster.gpu.count)
    assert limits["memory"] == cluster.resources["train"].memory_limit
    uri = str(next((work / "jobs").iterdir()))
    assert trainer.command == ["python", "-m", "must.train.torchrun"]
    assert trainer.args == [f"--nproc-per-node={cluster.training.processes}", "-m", "must.train.remote", uri]
    (patch,) = job.spec.runtime_patches
    (node,) = patch.training_runtime_spec.template.spec.replicated_jobs
    template = node.template.spec.template
    pod = template.spec
    assert node.name == "node" and pod.service_account_name == cluster.service_account
    assert pod.node_selector == cluster.gpu.node_selector
    assert [t.key for t in pod.tolerations] == [t.key for t in cluster.gpu.tolerations]
    assert [s.name for s in pod.image_pull_secrets or []] == cluster.pull_secrets
    mounts = {mount.mount_path: mount.name for mount in pod.containers[0].volume_mounts}
    volumes = {volume.name: volume for volume in pod.volumes}
    assert volumes[mounts["/dev/shm"]].empty_dir.medium == "Memory"
    if cluster.volume.claim:
        assert volumes[mounts[cluster.volume.mount]].persistent_volume_claim.claim_name == cluster.volume.claim
    for labels in (job.metadata.labels, template.metadata.labels):
        assert cluster.labels.items() <= labels.items()


def test_a_job_is_followed_to_its_end_and_its_model_fetched(api, work, capfd):
    api.on_create = completes(work, *(f"step {number}" for number in range(30)))
    summary, facts = train(work)
    shown = capfd.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("step ")] == [f"step {number}" for number in range(30)]
    assert summary == SUMMARY and len(facts["sha256"]) == 64
    assert (work.parent / "output" / "model.safetensors").exists()
    job = yaml.safe_load(next((work / "jobs").glob("*/job.yaml")).read_text())
    assert job["train"]["lr"] == 1e-3 and job["train"]["checkpoints"].startswith(f"{work}/checkpoints/")
    assert Path(job["train"]["classifier"]).read_bytes() == b"weights"
    (note,) = read_notes(str(work))
    assert note.state == "done" and "10 steps on 2 nodes" in note.result


def test_a_log_that_breaks_off_is_read_on_and_no_line_comes_twice(api, work, capfd):
    api.drop_log_after = 5
    api.on_create = completes(work, *(f"step {number}" for number in range(60)))
    train(work)
    shown = capfd.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("step ")] == [f"step {number}" for number in range(60)]
    assert any("broke off" in line for line in shown) and api.drop_log_after == 0


def test_a_failed_job_is_an_error_with_its_last_lines_and_events(api, work, capfd):
    api.on_create = fails("step 1", "RuntimeError: CUDA out of memory")
    with pytest.raises(SystemExit) as exit_:
        train(work)
    assert exit_.value.code == 1
    error = capfd.readouterr().err
    assert (
        "failed (Failed: a node was lost). Last lines of rank 0:" in error
        and "  RuntimeError: CUDA out of memory" in error
    )
    assert "OOMKilled: Container node was killed" in error and "goes on from the newest checkpoint" in error
    (note,) = read_notes(str(work))
    assert (note.state, note.code) == ("failed", 1)


def test_a_retry_replaces_a_failed_job_and_keeps_its_name(api, work, capfd):
    api.on_create = fails("no")
    with pytest.raises(SystemExit):
        train(work)
    api.on_create = completes(work, "going on after step 5")
    train(work)
    assert len(api.created) == 2 and api.created[0]["metadata"]["name"] == api.created[1]["metadata"]["name"]
    assert "failed before; starting it again from its checkpoints" in capfd.readouterr().out


def test_a_retried_launcher_attaches_to_the_job_that_runs(api, work, capfd):
    api.on_create = completes(work, "step 1")
    train(work)
    name = job_name(work)
    del api.jobs[name]["status"]
    api.pods[name][0].phase = "Running"
    threading.Timer(0.3, api.finish, [name]).start()
    train(work)
    assert len(api.created) == 1 and f"attached to the TrainJob {name}" in capfd.readouterr().out


def test_other_data_classes_or_settings_are_another_job(api, work):
    names = set()
    for change in ({}, {"settings": {"lr": 2e-3}}, {"epochs": 3}, {"init": "gs://b/registry/m/r1/bundle"}):
        api.on_create = lambda api, name: api.finish(name, "Failed")
        with pytest.raises(SystemExit):
            train(work, **change)
        names.add(api.created[-1]["metadata"]["name"])
    assert len(names) == 4 and all(len(name) <= 63 for name in names)


def test_a_launcher_that_loses_the_race_for_the_name_attaches(api, work, capfd, monkeypatch):
    """Nothing there when it looks, 409 when it creates."""
    api.on_create = completes(work)
    train(work)
    seen, real = [], launcher.Launch.look

    def look(self):
        seen.append(1)
        return None if len(seen) == 1 else real(self)

    monkeypatch.setattr(launcher.Launch, "look", look)
    train(work)
    assert len(api.created) == 1 and "another launcher has just submitted" in capfd.readouterr().out


def test_a_complete_job_whose_model_is_gone_is_run_again(api, work, capfd):
    import shutil

    api.on_create = completes(work)
    train(work)
    shutil.rmtree(next((work / "jobs").glob("*/bundle")))
    train(work)
    assert len(api.created) == 2 and "its model is gone" in capfd.readouterr().out


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(api, work):
    def on_create(api, name):
        api.outage = 6
        completes(work)(api, name)

    api.on_create = on_create
    assert train(work)[0] == SUMMARY


def test_a_job_that_takes_too_long_is_deleted_and_its_checkpoints_stay(api, work, capfd):
    checkpoints = work / "checkpoints" / "x"
    checkpoints.mkdir(parents=True)
    with pytest.raises(SystemExit) as exit_:
        train(work, nodes=nodes() | {"timeout": 1})
    assert exit_.value.code == 1 and not api.jobs and checkpoints.exists()
    assert "not done after 1 s; deleting the TrainJob" in capfd.readouterr().err


def test_sigterm_deletes_the_job_and_says_that_it_can_go_on(api, work, tmp_path):
    """A real process, terminated as Kubernetes does it."""
    code = (
        "import json, sys; from components.train_job.launcher import train_on_nodes\n"
        f"train_on_nodes({str(work)!r}, 'sha', {str(tmp_path / 'classifier')!r}, {str(tmp_path / 'output')!r}, "
        f"json.loads({json.dumps(nodes())!r}))"
    )
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("submitted") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75 and not api.jobs
    assert "stopped by SIGTERM; deleting the TrainJob" in error and "Its checkpoints stay" in error


@pytest.mark.parametrize("code, hint", [(403, "give the service account the role in deploy/"), (422, "422")])
def test_a_job_that_is_refused_is_one_line(api, work, capfd, code, hint):
    api.refuse_create = code
    with pytest.raises(SystemExit) as exit_:
        train(work)
    assert exit_.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("must train:")]
    assert "could not be submitted" in line and "trainjobs is forbidden" in line and hint in line


def test_a_cluster_without_kubeflow_trainer_is_one_line(api, work, capfd):
    with pytest.raises(SystemExit) as exit_:
        train(work, nodes=nodes() | {"runtime": "torch-distribute"})
    assert exit_.value.code == 2
    assert "is Kubeflow Trainer installed?" in capfd.readouterr().err


def test_the_role_in_deploy_allows_what_the_launcher_asks_for(api, work):
    api.on_create = fails("no")
    with pytest.raises(SystemExit):
        train(work)
    api.on_create = completes(work, "step 1")
    train(work)
    rules = []
    for file in ("trainjobs.yaml", "trainjobs-cluster.yaml", "service-account.yaml"):
        for document in yaml.safe_load_all((ROOT / "deploy" / file).read_text()):
            rules += document.get("rules", [])
    for method, path in set(api.calls):
        if path.endswith("/configmaps/kubeflow-trainer-public"):
            continue  # the SDK asks for the Trainer's version, and does without an answer
        group, resource, verb = asked(method, path)
        allowed = [r for r in rules if group in r["apiGroups"] and resource in r["resources"] and verb in r["verbs"]]
        assert allowed, (method, path)


def asked(method, path):
    """An API call as RBAC sees it: group, resource, verb."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    rest = rest[2:] if rest[0] == "namespaces" else rest
    named = len(rest) > 1
    resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
    return group, resource, {"GET": "get" if named else "list", "POST": "create", "DELETE": "delete"}[method]
