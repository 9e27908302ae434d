"""A namespace with Kubeflow Trainer and our runtime, a place to work at, and a cluster that answers as a test says."""

import json
from typing import Any

import pytest

from must_components.cluster import Cluster
from must_components.train_job import launch
from tests.components.kube_api import Api
from tests.components.launching import exit_code, fails
from tests.local_server import Answer, serving


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Kubernetes' API of the pod that the test is: a stage of the run r1."""
    made = Api()
    made.apply("training-runtime.yaml")
    for name, text in (("namespace", "vision"), ("token", "t")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(Cluster, "of_this_pod", lambda: Cluster(made.url, tmp_path))
    monkeypatch.setenv("MUST_RUN_ID", "r1")
    monkeypatch.setattr(launch, "POLL_JOB", 0.05)
    monkeypatch.setattr("must.base.storage.retry.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(launch, "API_TIMEOUT", 20.0)
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


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    """The cluster of this pod. `answers`: (method, path) -> (status, body); anything else is 404. What was asked is in
    `asked`."""

    def answer(request):
        path = request.path.partition("?")[0]
        asked.append((request.method, request.path, request.headers, json.loads(request.body or "null")))
        return Answer(*answers.get((request.method, path), (404, {"message": "the server could not find it"})))

    answers, asked = {}, []
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("vision\n")
    with serving(answer) as url:
        made: Any = Cluster(url, tmp_path)
        made.answers, made.asked = answers, asked
        monkeypatch.setattr(Cluster, "of_this_pod", lambda: made)
        yield made
