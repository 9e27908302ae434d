"""A Kubeflow Pipelines to ask, and must-pipeline's commands as a person types them."""

import json
import sys

import pytest
import yaml

from must_pipeline import cli, submit
from tests.pipeline.kfp_server import KfpServer

PARAMETERS = {"source": "gs://b/photos", "classes": "imagenet", "work_uri": "gs://b/work"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    monkeypatch.setenv("KFP_TOKEN", "me")
    monkeypatch.setattr(submit, "POLL", 0.01)
    monkeypatch.setattr("must.base.storage.store.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("must.base.storage.store.LONGEST_PAUSE", 0.05)
    made = KfpServer(users={"Bearer me": {"vision"}})
    yield made
    made.close()


@pytest.fixture
def must_pipeline(monkeypatch):
    """must_pipeline(command, *words): the exit code."""

    def call(command, *words):
        monkeypatch.setattr(sys, "argv", [f"must-pipeline {command}", *map(str, words)])
        try:
            cli.call(command)
        except SystemExit as end:
            return end.code
        return 0

    return call


@pytest.fixture
def files(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(PARAMETERS))
    (tmp_path / "cluster.yaml").write_text("{namespace: vision, service_account: must}")
    return tmp_path


@pytest.fixture
def submitter(server, files, must_pipeline):
    return lambda *words: must_pipeline("submit", *words, "--host", server.url, "--cluster", files / "cluster.yaml")


def refused(capsys, command, *words):
    """The one line that a command prints which ends with 2."""
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def kubeconfig(folder, url):
    """kubectl's configuration, for the Kubernetes API at `url`."""
    config = {"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}
    config |= {"clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}]}
    (folder / "kubeconfig").write_text(json.dumps(config))
    return str(folder / "kubeconfig")
