"""A namespace with Kubeflow Trainer and our runtime, and a place to work at."""

import pytest

from must_components.train_job import launch
from tests.components.kube_api import Api


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
    made.server.shutdown()


@pytest.fixture
def work(tmp_path):
    (tmp_path / "classifier").write_bytes(b"weights")
    return tmp_path / "work"
