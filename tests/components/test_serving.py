"""The InferenceService of the stage serve, and applying it to an API server that says yes, no, or nothing."""

import json

import pytest
import yaml

from must.base.exits import PREEMPTED, WRONG_INPUT, find_exit_code
from must.runtime.notes import Facts
from must_components.serving import service
from must_components.serving.service import inference_service, is_reachable
from must_pipeline.cluster.config import Cluster, Credentials, Pool, Server, Toleration, Volume
from must_pipeline.cluster.placement import encode_server

REGISTRY = "gs://models/registry"
SERVICE = "/apis/serving.kserve.io/v1beta1/namespaces/vision/inferenceservices/photos"


def test_the_manifest_is_as_small_as_a_cluster_says():
    found = inference_service(REGISTRY, "photos", encode_server(Cluster()))
    predictor = found["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (found["apiVersion"], container["name"]) == ("serving.kserve.io/v1beta1", "kserve-container")
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["runAsNonRoot"]
    assert container["image"] == Cluster().image("must-serve") and container["env"] == []
    assert predictor["volumes"] == [{"name": "scratch", "emptyDir": {}}]
    assert found["metadata"]["annotations"].keys() == {"serving.kserve.io/deploymentMode", "must/server"}
    assert found["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert "terminationGracePeriodSeconds" in predictor, "which Knative refuses"
    assert not {"serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets"} & predictor.keys()


def test_what_a_cluster_says_of_its_pods_is_said_of_the_servers():
    cluster = Cluster(
        registry="registry.example/team", service_account="must", pull_secrets=["pull"], env={"A": "b"},
        labels={"team": "vision", "kueue.x-k8s.io/queue-name": "must"},
        credentials=Credentials(kind="secret", secret="key"), volume=Volume(claim="data", mount="/data"),
        cpu=Pool(node_selector={"pool": "cpu"}, tolerations=[Toleration("pool", value="cpu", effect="NoSchedule")]),
    )  # fmt: skip
    found = inference_service("/data/registry", "photos", encode_server(cluster))
    labels = {"app.kubernetes.io/managed-by": "must", "team": "vision"}  # it does not wait in the queue of the stages
    assert found["metadata"]["labels"] == labels
    predictor = found["spec"]["predictor"]
    assert predictor["tolerations"] == [{"key": "pool", "operator": "Equal", "value": "cpu", "effect": "NoSchedule"}]
    (container,) = predictor["containers"]
    assert container["image"].startswith("registry.example/team/must-serve:")
    assert predictor["serviceAccountName"] == "must" and predictor["nodeSelector"] == {"pool": "cpu"}
    assert predictor["imagePullSecrets"] == [{"name": "pull"}]
    assert [volume["name"] for volume in predictor["volumes"]] == ["scratch", "key", "data"]
    assert all(mount.get("readOnly") for mount in container["volumeMounts"][1:])
    assert {"A", "GOOGLE_APPLICATION_CREDENTIALS"} == {entry["name"] for entry in container["env"]}


def test_names_and_places():
    for name in ("a.model", "7up", "m" * 54):  # its Service is called NAME-predictor
        with pytest.raises(ValueError, match="a name that Kubernetes takes"):
            inference_service(REGISTRY, name, encode_server(Cluster()))
    assert inference_service(REGISTRY, "m" * 53, encode_server(Cluster()))["metadata"]["name"] == "m" * 53
    assert is_reachable(REGISTRY, "") and is_reachable("/data/registry", "/data/")
    assert not is_reachable("/database", "/data") and not is_reachable("/data/registry", "")


@pytest.fixture
def cluster(kubernetes):
    """It takes what is applied."""
    kubernetes.answers["PATCH", SERVICE] = 200, {}
    return kubernetes


def serve(tmp_path, how="apply", **cluster):
    values = {"registry_uri": f"{tmp_path}/registry", "model_name": "photos", "output": str(tmp_path / "out/service")}
    server = encode_server(Cluster(**{"volume": Volume(claim="data", mount=str(tmp_path))} | cluster))
    return service.serve(Facts(), str(tmp_path / "work"), how=how, server=server, **values)


def test_applying(cluster, tmp_path):
    applied = serve(tmp_path)
    _, (method, path, headers, body) = cluster.asked  # after a look at what is there
    assert method == "PATCH" and path == f"{SERVICE}?fieldManager=must&force=true"
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    written = yaml.safe_load((tmp_path / "registry/photos/inferenceservice.yaml").read_text())
    assert json.loads(written["metadata"]["annotations"]["must/server"]) == vars(Server())
    assert body == written == yaml.safe_load((tmp_path / "out/service").read_text())
    assert applied["namespace"] == "vision" and applied["manifest"].endswith("inferenceservice.yaml")


def applied(cluster, tmp_path, status, live=None, **size):
    """The manifest that is sent where a look at the running server is answered so."""
    cluster.answers["GET", SERVICE] = status, live
    serve(tmp_path, server=Server(**size))
    return cluster.asked[-1][-1]


def measure_size(manifest):
    predictor = manifest["spec"]["predictor"]
    return predictor["minReplicas"], predictor["containers"][0]["resources"]


def test_a_promotion_keeps_a_servers_size_until_cluster_yaml_changes(cluster, tmp_path, caplog):
    live = applied(cluster, tmp_path, 404)
    assert measure_size(live) == (1, {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}})
    live["spec"]["predictor"] |= {"minReplicas": 3, "maxReplicas": 5}
    more = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "8Gi"}}
    live["spec"]["predictor"]["containers"][0]["resources"] = more
    same = json.dumps(vars(Server()) | {"replicas": 1.0}, sort_keys=True, indent=1)  # in another form
    live["metadata"]["annotations"]["must/server"] = same
    for _ in range(2):  # the next promotion as well
        live = applied(cluster, tmp_path, 200, live)
        assert measure_size(live) == (3, more) and "maxReplicas" not in live["spec"]["predictor"]  # never ours
    assert "values are kept, not those of cluster.yaml: replicas 3, resources" in caplog.text
    live = applied(cluster, tmp_path, 200, live, replicas=2, memory_limit="6Gi")
    assert measure_size(live) == (2, {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "6Gi"}})


def test_without_the_right_to_look_the_file_counts_and_a_line_says_so(cluster, tmp_path, caplog):
    assert measure_size(applied(cluster, tmp_path, 403))[0] == 1
    assert "no right to read the server, so replicas and resources are those of cluster.yaml" in caplog.text


@pytest.mark.parametrize(
    "status, answer, code, said",
    [
        (403, {"message": "cannot patch"}, WRONG_INPUT, "may not apply an InferenceService in vision; apply deploy/"),
        (404, {}, WRONG_INPUT, "this cluster has no InferenceService; install KServe"),
        (400, {"message": "admission denied"}, WRONG_INPUT, "refuses the InferenceService: 400 admission denied"),
        (503, {}, PREEMPTED, "answers 503"),
    ],
)
def test_where_the_api_server_says_no_the_file_can_be_applied_by_hand(cluster, tmp_path, status, answer, code, said):
    cluster.answers["PATCH", SERVICE] = status, answer
    with pytest.raises(ValueError, match=said) as error:
        serve(tmp_path)
    assert find_exit_code(error.value) == code
    assert (tmp_path / "registry/photos/inferenceservice.yaml").exists()


def test_the_first_stage_tries_without_a_trace_whether_it_could_be_applied(cluster):
    manifest = inference_service(REGISTRY, "photos", encode_server(Cluster()))
    service.apply(manifest, dry=True)
    _, (_, path, headers, body) = cluster.asked
    assert path == f"{SERVICE}?fieldManager=must&force=true&dryRun=All" and body == manifest
    assert headers["Authorization"] == "Bearer secret"


def test_outside_of_a_cluster_or_of_what_its_pods_see(tmp_path):
    with pytest.raises(ValueError, match="use `write`"):
        serve(tmp_path)
    with pytest.raises(ValueError, match="does not see the registry"):
        serve(tmp_path, volume=Volume())
    assert serve(tmp_path, how="write")["namespace"] == ""
