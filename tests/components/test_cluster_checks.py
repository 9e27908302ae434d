"""The first stage asks the cluster what a TrainJob needs of it."""

import json

import pytest

from must.base.storage import TransientError
from must_components import cluster
from must_components.cluster import KubernetesApi, list_failures, parse_exit_code
from tests.common import ROOT


@pytest.mark.parametrize("runtime", ["must-torch", "torch-distributed"], ids=["the namespace's", "the cluster's"])
def test_the_trainjobs_runtime_may_be_the_namespaces_or_the_clusters(api, runtime):
    KubernetesApi.of_this_pod().check_trainer(runtime)
    assert {(one["verb"], one["resource"]) for one in api.reviews} == {("create", "trainjobs"), ("get", "jobsets")}
    assert {one["namespace"] for one in api.reviews} == {"vision"}


@pytest.mark.parametrize("runtime, allowed, said", [
    ("none", True, "no training runtime none in vision: is Kubeflow Trainer 2 installed, and"),
    ("must-torch", False, "may not create TrainJobs in vision; give it the role"),
])  # fmt: skip
def test_a_runtime_or_a_right_that_is_missing_is_said_before_the_training(api, runtime, allowed, said):
    api.allowed, api.refuse = allowed, {("GET", "/clustertrainingruntimes/"): 403}  # its role is optional
    with pytest.raises(ValueError, match=said):
        KubernetesApi.of_this_pod().check_trainer(runtime)


def test_a_server_that_does_not_answer_may_pass(api, tmp_path):
    with pytest.raises(TransientError, match="does not answer"):
        KubernetesApi("http://127.0.0.1:9", tmp_path).check_trainer("must-torch")


def test_outside_a_pod_there_is_no_cluster_to_ask(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "ACCOUNT", tmp_path / "none")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert KubernetesApi.of_this_pod() is None


def test_what_argo_recorded_names_the_stage_and_the_reason():
    recorded = json.loads((ROOT / "tests" / "pipeline" / "recorded" / "argo.json").read_text())
    said = [list_failures({"status": {"nodes": {str(n): node for n, node in enumerate(case["nodes"])}}})
            for case in recorded["cases"]]  # fmt: skip
    assert {"train": ["pod deleted"]} in said and {"inputs": ["main: Error (exit code 1)"]} in said
    assert all(set(one) in ({"train"}, {"inputs"}) for one in said)
    assert parse_exit_code("main: Error (exit code 1)") == 1 and parse_exit_code("main: Error (exit code 143)") is None
    assert parse_exit_code("pod deleted") is None
