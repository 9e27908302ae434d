"""The first stage asks the cluster what a TrainJob needs of it: against a server that answers as Kubernetes does."""

import json

import pytest

from must.base.storage import TransientError
from must_components import cluster
from must_components.cluster import KubernetesApi, list_failures, parse_exit_code
from tests.common import ROOT

TRAINERS = "/apis/trainer.kubeflow.org/v1alpha1"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def trainer(kubernetes, runtimes, allowed):
    for place in runtimes:
        kubernetes.answers["GET", f"{TRAINERS}/{place}/must-torch"] = (200, {})
    kubernetes.answers["POST", REVIEWS] = (201, {"status": {"allowed": allowed}})


@pytest.mark.parametrize("place", ["namespaces/vision/trainingruntimes", "clustertrainingruntimes"])
def test_the_trainjobs_runtime_may_be_the_namespaces_or_the_clusters(kubernetes, place):
    trainer(kubernetes, [place], True)
    kubernetes.check_trainer("must-torch")
    asked = [body["spec"]["resourceAttributes"] for method, _, _, body in kubernetes.asked if method == "POST"]
    assert {(one["verb"], one["resource"]) for one in asked} == {("create", "trainjobs"), ("get", "jobsets")}
    assert {one["namespace"] for one in asked} == {"vision"}


@pytest.mark.parametrize(
    "runtimes, allowed, said",
    [
        ([], True, "no training runtime must-torch in vision: is Kubeflow Trainer 2 installed, and"),
        (["namespaces/vision/trainingruntimes"], False, "may not create TrainJobs in vision; give it the role"),
    ],
)
def test_a_runtime_or_a_right_that_is_missing_is_said_before_the_training(kubernetes, runtimes, allowed, said):
    trainer(kubernetes, runtimes, allowed)
    kubernetes.answers["GET", f"{TRAINERS}/clustertrainingruntimes/must-torch"] = (403, {})  # its role is optional
    with pytest.raises(ValueError, match=said):
        kubernetes.check_trainer("must-torch")


def test_a_server_that_does_not_answer_may_pass(kubernetes):
    gone = KubernetesApi("http://127.0.0.1:9", kubernetes.account)
    with pytest.raises(TransientError, match="does not answer"):
        gone.check_trainer("must-torch")


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
