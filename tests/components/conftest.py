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
    made = Api()
    made.apply("training-runtime.yaml")
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(launch, "POLL_JOB", 0.05)
    monkeypatch.setattr("must.base.storage.retry.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(launch, "API_TIMEOUT", 20.0)
    yield made
    made.server.close()


@pytest.fixture
def work(tmp_path):
    (tmp_path / "classifier").write_bytes(b"weights")
    return tmp_path / "work"


@pytest.fixture
def failed_job(api, work):
    """The name of a TrainJob that has failed."""
    api.on_create = fails("no")
    assert exit_code(work) == 1
    (name,) = api.jobs
    return name


@pytest.fixture
def kubernetes(tmp_path):
    """`answers`: (method, path) -> (status, body); anything else is 404. What was asked is in `asked`."""

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
        yield made
