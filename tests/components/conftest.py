"""A namespace with Kubeflow Trainer and our runtime, a launcher in it, jobs that live and end as a test wants, and a
cluster that answers as a test says."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest

from must.model.description import RunSummary
from must.pods.notes import Facts
from must_components import train_job
from must_components.cluster import KubernetesApi
from must_components.train_job import train_on_nodes
from must_pipeline.cluster import load_cluster
from must_pipeline.placement import encode_nodes
from tests.common import ROOT
from tests.components.kube_api import Api
from tests.components.trainer import now
from tests.pipeline.compiled import CLUSTER
from tests.registry.bundles import make_bundle

SUMMARY = asdict(RunSummary(steps=10, images_per_s=100.0))


def nodes(name="gke"):
    return encode_nodes(load_cluster(CLUSTER.with_name("clusters") / f"{name}.yaml"))


def train(work, facts=None, **changes):
    arguments = {"nodes": nodes(), "settings": {"lr": 1e-3}, "preset": "digits"} | changes
    places = {name: str(work.parent / name) for name in ("classifier", "bundle")}
    return train_on_nodes(facts or Facts(), str(work), index_sha256="sha", **places, **arguments)


def exit_code(work, **changes):
    """Of a launcher whose job fails, or that is stopped."""
    with pytest.raises(SystemExit) as end:
        train(work, **changes)
    return end.value.code


def start_launcher(api, work, **changes):
    """The process of one, whose Kubernetes API is `api`."""
    values = {name: str(work.parent / name) for name in ("classifier", "bundle")} | changes
    code = (
        "import json, sys; from pathlib import Path; from must_components.cluster import KubernetesApi\n"
        "from must.pods.notes import Facts; from must_components.train_job import train_on_nodes\n"
        "KubernetesApi.of_this_pod = lambda: KubernetesApi(sys.argv[3], Path(sys.argv[4]))\n"
        "train_on_nodes(Facts(), sys.argv[1], **json.loads(sys.argv[2]))"
    )
    command = [sys.executable, "-u", "-c", code, str(work), json.dumps(values), api.url, str(work.parent)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def publish(work):
    """What the main process of a real job leaves."""
    (job,) = (work / "jobs").iterdir()
    if not (job / "bundle").exists():
        make_bundle(job / "bundle")
        description = json.loads((job / "bundle" / "model.json").read_text())
        description["provenance"]["summary"] = SUMMARY
        (job / "bundle" / "model.json").write_text(json.dumps(description))


def completes(work, *lines):
    def on_start(api, name):
        def live():
            for line in lines:
                api.pods[name][0].say(line)
                time.sleep(0.01)
            publish(work)
            api.finish(name)

        threading.Thread(target=live, daemon=True).start()

    return on_start


def fails(*lines, code=1, node=0):
    def on_start(api, name):
        pod = api.pods[name][node]
        pod.say(*lines)
        event = {"reason": "OOMKilled", "message": "Container node was killed", "firstTimestamp": now()}
        api.events.append({"involvedObject": {"kind": "Pod", "name": pod.name}, **event})
        api.exit(name, node, code)

    return on_start


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Kubernetes' API of the pod that the test is: a stage of the run r1."""
    made = Api()
    made.apply("training-runtime.yaml")
    for name, text in (("namespace", "vision"), ("token", "t")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(KubernetesApi, "of_this_pod", lambda: KubernetesApi(made.url, tmp_path))
    monkeypatch.setenv("MUST_RUN_ID", "r1")
    monkeypatch.setattr(train_job, "POLL_JOB", 0.05)
    monkeypatch.setattr("must.base.storage.store.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(train_job, "API_TIMEOUT", 20.0)
    yield made
    made.server.close()


@pytest.fixture
def run(api, monkeypatch):
    """The Argo workflow of the run whose pod this is."""
    monkeypatch.setenv("KFP_POD_NAME", "this-pod")
    api.launchers["this-pod"] = {"metadata": {"labels": {"workflows.argoproj.io/workflow": "must-x"}}}
    api.workflows["must-x"] = {"metadata": {"name": "must-x"}, "spec": {}}
    return api.workflows["must-x"]


@pytest.fixture
def work(tmp_path):
    (tmp_path / "classifier").write_bytes(b"weights")
    return tmp_path / "work"


@pytest.fixture
def failed_job(api, work):
    """The name of a TrainJob that has failed."""
    api.on_start = fails("no")
    assert exit_code(work) == 1
    (name,) = api.jobs
    return name
