"""Training as a TrainJob: what is asked for, and a launcher that follows it to its end."""

from pathlib import Path

import pytest
import yaml

from must.runtime.notes import read_notes
from must_components.train_job.jobs import Jobs
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER
from tests.components.launching import ROOT, SUMMARY, completes, exit_code, fails, nodes, train


@pytest.mark.parametrize("name", ["gke", "openshift"])
def test_the_manifest_is_a_valid_trainjob_with_every_setting_of_the_cluster(api, work, name):
    from kubeflow_trainer_api import models  # a thousand models, which every process that collects tests would wait for

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
    assert trainer.command == ["python", "-m", "must.method.distributed.torchrun"]
    assert trainer.args == [f"--nproc-per-node={cluster.training.processes}", "-m", "must.runtime.node", uri]
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
    assert template.metadata.labels["sidecar.istio.io/inject"] == "false"
    assert template.metadata.annotations["sidecar.istio.io/inject"] == "false"


def test_a_job_is_followed_to_its_end_and_its_model_fetched(api, work, capfd):
    api.on_create = completes(work, *(f"step {number}" for number in range(30)))
    trained = train(work)
    shown = capfd.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("step ")] == [f"step {number}" for number in range(30)]
    assert trained.summary == SUMMARY and len(trained.origin["sha256"]) == 64
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


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(api, work):
    def on_create(api, name):
        api.outage = 6
        completes(work)(api, name)

    api.on_create = on_create
    assert train(work).summary == SUMMARY


@pytest.mark.parametrize("code, hint", [(403, "give the service account the role in deploy/"), (422, "422")])
def test_a_job_that_is_refused_is_one_line(api, work, capfd, code, hint):
    api.refuse_create = code
    assert exit_code(work) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("must train:")]
    assert "could not be submitted" in line and "trainjobs is forbidden" in line and hint in line


@pytest.mark.parametrize("refused", [False, True])
def test_a_runtime_that_is_not_there_is_one_line(api, work, capfd, refused):
    """The SDK looks for it in the namespace, and then in the cluster, where the account need not have rights."""
    api.refuse_cluster = refused
    assert exit_code(work, nodes=nodes() | {"runtime": "torch-distribute"}) == 2
    assert "is Kubeflow Trainer 2 installed, and deploy/training-runtime.yaml applied?" in capfd.readouterr().err


def test_the_role_in_deploy_allows_what_the_launcher_asks_for(api, work, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    api.launchers["launcher"] = {"metadata": {"name": "launcher"}, "spec": {"containers": [{"name": "main"}]}}
    api.on_create = fails("no")
    assert exit_code(work) == 1
    api.on_create = completes(work, "step 1")
    train(work)
    Jobs().is_over("must-x1")  # as on SIGTERM
    rules = []
    for document in yaml.safe_load_all((ROOT / "deploy" / "trainjobs.yaml").read_text()):
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
