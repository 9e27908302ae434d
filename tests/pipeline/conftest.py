"""A Kubeflow Pipelines to ask, and must-pipeline's commands as a person types them."""

import sys

import pytest
import yaml

from must_pipeline import cli, submit
from tests.pipeline.kfp_server import KfpServer

PARAMETERS = {"source": "gs://b/photos", "classes": "imagenet", "work_uri": "gs://b/work"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(submit, "POLL", 0.01)
    monkeypatch.setattr("must.base.storage.store.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("must.base.storage.store.LONGEST_PAUSE", 0.05)
    made = KfpServer()
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
    return tmp_path
