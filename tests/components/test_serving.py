"""The InferenceService of the stage serve, and applying it to an API server that says yes, no, or nothing."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from must.base.exits import PREEMPTED, WRONG_INPUT, code_of
from must.base.storage import TransientError
from must.runtime.supervise import supervised
from must_components.cluster import Cluster as Account
from must_components.serving import service
from must_components.serving.manifest import inference_service, is_reachable
from must_pipeline.cluster.config import Cluster, CpuPool, Credentials, Server, Toleration, Volume
from must_pipeline.cluster.nodes import server_of

REGISTRY = "gs://models/registry"


def test_the_manifest_is_as_small_as_a_cluster_says():
    found = inference_service(REGISTRY, "photos", server_of(Cluster()))
    predictor = found["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (found["apiVersion"], container["name"]) == ("serving.kserve.io/v1beta1", "kserve-container")
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["runAsNonRoot"]
    assert container["image"] == Cluster().image("must-serve") and container["env"] == []
    assert predictor["volumes"] == [{"name": "scratch", "emptyDir": {}}]
    assert found["metadata"]["annotations"].keys() == {"serving.kserve.io/deploymentMode", "must/server"}
    assert found["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    assert "terminationGracePeriodSeconds" in predictor, "which Knative refuses"
    assert not {"serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets"} & predictor.keys()


def test_what_a_cluster_says_of_its_pods_is_said_of_the_servers():
    cluster = Cluster(
        registry="registry.example/team", service_account="must", pull_secrets=["pull"], env={"A": "b"},
        credentials=Credentials(kind="secret", secret="key"), volume=Volume(claim="data", mount="/data"),
        cpu=CpuPool(node_selector={"pool": "cpu"}, tolerations=[Toleration("pool", value="cpu", effect="NoSchedule")]),
    )  # fmt: skip
    predictor = inference_service("/data/registry", "photos", server_of(cluster))["spec"]["predictor"]
    assert predictor["tolerations"] == [{"key": "pool", "operator": "Equal", "value": "cpu", "effect": "NoSchedule"}]
    (container,) = predictor["containers"]
    assert container["image"].startswith("registry.example/team/must-serve:")
    assert predictor["serviceAccountName"] == "must" and predictor["nodeSelector"] == {"pool": "cpu"}
    assert predictor["imagePullSecrets"] == [{"name": "pull"}]
    assert [volume["name"] for volume in predictor["volumes"]] == ["scratch", "key", "data"]
    assert all(mount.get("readOnly") for mount in container["volumeMounts"][1:])
    assert {"A", "GOOGLE_APPLICATION_CREDENTIALS"} == {entry["name"] for entry in container["env"]}


def test_a_server_does_not_wait_in_the_queue_of_the_stages():
    cluster = Cluster(labels={"team": "vision", "kueue.x-k8s.io/queue-name": "must"})
    found = inference_service(REGISTRY, "photos", server_of(cluster))
    assert found["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "must", "team": "vision"}


def test_names_and_places():
    for name in ("a.model", "7up", "m" * 54):  # its Service is called NAME-predictor
        with pytest.raises(ValueError, match="a name that Kubernetes takes"):
            inference_service(REGISTRY, name, server_of(Cluster()))
    assert inference_service(REGISTRY, "m" * 53, server_of(Cluster()))["metadata"]["name"] == "m" * 53
    assert is_reachable(REGISTRY, {}) and is_reachable("/data/registry", {"mount": "/data/"})
    assert not is_reachable("/database", {"mount": "/data"}) and not is_reachable("/data/registry", {})


@contextmanager
def api_server(status, live=None):
    """An API server that answers every PATCH with `status`; the requests it had. `live`: the server that is there, 403
    for no right to look."""
    had = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            text = json.dumps(live if isinstance(live, dict) else {"kind": "Status"}).encode()
            self.send_response(200 if isinstance(live, dict) else live or 404)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_PATCH(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            had.append((self.path, self.headers["content-type"], yaml.safe_load(body)))
            answer = json.dumps({"kind": "Status", "code": status}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", had
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def in_a_pod(monkeypatch, tmp_path):
    """What a pod has: an address, an account's token and a namespace."""

    def at(url):
        (tmp_path / "namespace").write_text("vision\n")
        (tmp_path / "token").write_text("secret\n")
        monkeypatch.setattr(Account, "of_this_pod", lambda: Account(url, tmp_path))

    return at


def given(tmp_path):
    return {
        "registry_uri": f"{tmp_path}/registry", "model_name": "photos", "how": "apply",
        "server": server_of(Cluster(volume=Volume(claim="data", mount=str(tmp_path)))),
        "output": str(tmp_path / "out/service"),
    }  # fmt: skip


def serve(tmp_path, **values):
    return service.serve(str(tmp_path / "work"), **(given(tmp_path) | values))


def test_applying(in_a_pod, tmp_path):
    with api_server(200) as (url, had):
        in_a_pod(url)
        found = serve(tmp_path)
    ((path, kind, body),) = had
    assert path.startswith("/apis/serving.kserve.io/v1beta1/namespaces/vision/inferenceservices/photos?")
    assert "fieldManager=must" in path and kind == "application/apply-patch+yaml"
    written = yaml.safe_load((tmp_path / "registry/photos/inferenceservice.yaml").read_text())
    assert json.loads(written["metadata"]["annotations"]["must/server"]) == vars(Server())
    assert body == written == yaml.safe_load((tmp_path / "out/service").read_text())
    assert found.namespace == "vision" and found.manifest.endswith("inferenceservice.yaml")


def applied(in_a_pod, tmp_path, live, **size):
    server = server_of(Cluster(volume=Volume(claim="data", mount=str(tmp_path)), server=Server(**size)))
    with api_server(200, live) as (url, had):
        in_a_pod(url)
        serve(tmp_path, server=server)
    return had[-1][2]


def size_of(manifest):
    predictor = manifest["spec"]["predictor"]
    return predictor["minReplicas"], predictor["containers"][0]["resources"]


def test_what_its_operators_gave_a_server_stays_at_a_promotion_until_cluster_yaml_says_another(
    in_a_pod, tmp_path, caplog
):
    live = applied(in_a_pod, tmp_path, None)
    assert size_of(live) == (1, {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}})
    live["spec"]["predictor"] |= {"minReplicas": 3, "maxReplicas": 5}
    more = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "8Gi"}}
    live["spec"]["predictor"]["containers"][0]["resources"] = more
    for _ in range(2):  # the next promotion as well
        live = applied(in_a_pod, tmp_path, live)
        assert size_of(live) == (3, more) and "maxReplicas" not in live["spec"]["predictor"]  # never ours
    assert "values are kept, not those of cluster.yaml: replicas 3, resources" in caplog.text
    live = applied(in_a_pod, tmp_path, live, replicas=2, memory_limit="6Gi")
    assert size_of(live) == (2, {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "6Gi"}})


def test_a_server_of_an_earlier_version_keeps_what_it_has(in_a_pod, tmp_path):
    live = applied(in_a_pod, tmp_path, None)
    del live["metadata"]["annotations"]["must/server"]
    live["spec"]["predictor"]["minReplicas"] = 3
    assert size_of(applied(in_a_pod, tmp_path, live))[0] == 3
    assert size_of(applied(in_a_pod, tmp_path, live, replicas=2))[0] == 2


def test_without_the_right_to_look_the_file_counts_and_a_line_says_so(in_a_pod, tmp_path, caplog):
    assert size_of(applied(in_a_pod, tmp_path, 403))[0] == 1
    assert "no right to read the server, so replicas and resources are those of cluster.yaml" in caplog.text


@pytest.mark.parametrize(
    "status, said, kind",
    [
        (403, "apply deploy/serving.yaml or use", ValueError),
        (404, "install KServe", ValueError),
        (422, "refuses the InferenceService: 422", ValueError),
        (503, "answers 503", TransientError),
    ],
)
def test_an_api_server_that_says_no(in_a_pod, tmp_path, status, said, kind):
    with api_server(status) as (url, _):
        in_a_pod(url)
        with pytest.raises(kind, match=said) as error:
            serve(tmp_path)
    assert code_of(error.value) == (PREEMPTED if kind is TransientError else WRONG_INPUT)
    assert (tmp_path / "registry/photos/inferenceservice.yaml").exists(), "it can be applied by hand"


def test_an_api_server_that_is_away(in_a_pod, tmp_path):
    in_a_pod("http://127.0.0.1:9")
    with pytest.raises(TransientError, match="does not answer"):
        serve(tmp_path)


def test_outside_of_a_cluster(tmp_path):
    with pytest.raises(ValueError, match="use `write`"):
        serve(tmp_path)
    assert serve(tmp_path, how="write").namespace == ""


def test_what_the_user_can_mend_is_one_line_and_is_not_tried_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MUST_RETRIES", "2,0,1")
    with pytest.raises(SystemExit) as ended:
        supervised("serve", service.serve, "7", str(tmp_path / "work"), **given(tmp_path))
    said = capfd.readouterr().err
    assert ended.value.code == WRONG_INPUT and "use `write`" in said
    assert "Traceback" not in said and "trying again" not in said


def test_a_registry_that_no_pod_sees_is_not_applied(tmp_path):
    with pytest.raises(ValueError, match="does not see the registry"):
        serve(tmp_path, server=server_of(Cluster()))
