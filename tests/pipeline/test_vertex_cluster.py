"""cluster.yaml of kind vertex: one document for Vertex AI Pipelines; Kubernetes' settings are refused by name.

What needs Google's client (its messages, submitting) is tested in tests/vertex.
"""

import json
import sys

import pytest
import yaml

from must_pipeline.cli import call
from must_pipeline.cluster.load import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.files import CLUSTER, documents
from must_pipeline.stages import STAGES
from must_pipeline.vertex.placement import is_installed

EXAMPLE = CLUSTER.with_name("clusters") / "vertex.yaml"
ONE = {  # the least there is
    "kind": "vertex",
    "registry": "europe-west4-docker.pkg.dev/my-project/must",
    "vertex": {"project": "my-project", "location": "europe-west4", "pipeline_root": "gs://b/root"},
}
JOB = {"training": {"nodes": 2}, "gpu": {"count": 8, "accelerator": "NVIDIA_H100_80GB"}}


def load(tmp_path, content):
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    return load_cluster(tmp_path / "cluster.yaml")


def merged(base, change):
    return {**base, **{key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict)
                       else value for key, value in change.items()}}  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"namespace": "team"}, "namespace: is a setting of Kubernetes, and kind is vertex"),
        ({"pull_policy": "Always"}, "pull_policy: is a setting of Kubernetes"),
        ({"pull_secrets": ["x"]}, "pull_secrets: is a setting of Kubernetes"),
        ({"credentials": {"kind": "workload-identity"}}, "credentials.kind: is a setting of Kubernetes"),
        ({"credentials": {"variable": "X"}}, "credentials.variable: is a setting of Kubernetes"),
        ({"cpu": {"node_selector": {"a": "b"}}}, "cpu.node_selector: is a setting of Kubernetes"),
        ({"gpu": {"count": 1, "tolerations": [{"operator": "Exists"}]}}, "gpu.tolerations: is a setting of Kubernetes"),
        ({"shm": "8Gi"}, "shm: is a setting of Kubernetes"),
        ({"volume": {"claim": "c", "mount": "/d"}}, "volume: is a setting of Kubernetes"),
        ({"training": {"runtime": "mine"}}, "training.runtime: is a setting of Kubernetes"),
        ({"training": {"as": "trainjob"}}, "training.as trainjob: is Kubeflow Trainer's"),
        ({"retries": {"window": 9000}}, "retries.window: is a setting of Kubernetes"),
        ({"resources": {"shard": {"cpu": "4"}}}, "resources.shard.cpu: Vertex chooses a machine by limits alone"),
        ({"timeouts": {"shard": 60}}, "timeouts.shard: Vertex has a time limit for a CustomJob alone"),
        ({"timeouts": {"train": 60}}, "timeouts.train: Vertex has a time limit for a CustomJob alone"),
        ({"vertex": {"project": ""}}, "vertex.project: is missing"),
        ({"vertex": {"location": "Europe"}}, "vertex.location 'Europe': expected europe-west4"),
        ({"vertex": {"pipeline_root": "s3://b"}}, "vertex.pipeline_root 's3://b': expected gs://"),
        ({"vertex": {"network": "default"}}, "vertex.network 'default': expected projects/"),
        ({"vertex": {"machine": "a3-highgpu-8g"}}, "vertex.machine: is of a CustomJob's nodes"),
        ({"service_account": "must"}, "service_account 'must': on Vertex it is one of Google's"),
        ({"registry": ""}, "registry: is missing"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "q"}}, "labels.kueue.x-k8s.io/queue-name 'q': Google's labels"),
        ({"env": {"1A": "x"}}, "env '1A': is no name"),
        ({"tensorboard": "/data"}, "tensorboard '/data': must be a bucket's URI"),
        ({"gpu": {"count": 1}}, "gpu.accelerator 'nvidia.com/gpu': Vertex has other names"),
        ({"gpu": {"count": 1, "accelerator": "NVIDIA_L40"}}, "did you mean 'NVIDIA_L4'?"),
        (JOB, "vertex.machine: is missing"),
        (merged(JOB, {"vertex": {"machine": "huge"}}), "vertex.machine 'huge': is no machine type"),
        (merged(JOB, {"vertex": {"machine": "g2-standard-96"}}), "contradicts gpu.accelerator NVIDIA_H100_80GB"),
        (merged(JOB, {"vertex": {"machine": "a3-highgpu-4g"}}), "gpu.count 8 contradicts vertex.machine a3-highgpu-4g"),
        (merged(JOB, {"training": {"as": "pod"}}), "training.as pod contradicts training.nodes 2"),
        (
            merged(JOB, {"vertex": {"machine": "a3-highgpu-8g"}, "resources": {"train": {"cpu_limit": "8"}}}),
            "resources.train contradicts training as a CustomJob",
        ),
        ({"kind": "gke"}, "kind"),
        ({"kind": "kubernetes"}, "vertex.project: goes with kind: vertex"),
        ({"kind": "kubernetes", "vertex": None}, "vertex: has no value"),
    ],
)
def test_what_vertex_does_not_have_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError) as error:
        load(tmp_path, merged(ONE, change))
    assert message in str(error.value)


def test_a_custom_job_is_vertexs_alone(tmp_path):
    with pytest.raises(ValueError, match=r"^training\.as customjob: goes with kind: vertex"):
        load(tmp_path, {"training": {"as": "customjob"}})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vertex")
    change = {
        "gpu": {"count": 1, "accelerator": "NVIDIA_L4", "stages": ["train", "evaluate"]},
        "resources": {"train": {"cpu_limit": "8", "memory_limit": "32G"}},
        "env": {"MLFLOW_TRACKING_URI": "http://mlflow"},
        "retries": {"count": 4},
    }
    cluster = load(folder, merged(ONE, change))
    compile_pipeline(cluster, folder / "pipeline.yaml")
    (document,) = documents((folder / "pipeline.yaml").read_text())
    return document


def test_the_one_document_has_images_limits_and_googles_accelerators(compiled):
    executors = {name.removeprefix("exec-"): one["container"]
                 for name, one in compiled["deploymentSpec"]["executors"].items()}  # fmt: skip
    executors = {name: one for name, one in executors.items() if not name.startswith("close-")}  # more of the same
    assert executors.keys() == STAGES.keys() - {"predict"}  # which is there if cluster.yaml asks for it
    for stage, container in executors.items():
        on_gpu = stage in ("train", "evaluate")
        image = "must-train" if on_gpu else STAGES[stage].image
        assert container["image"].startswith(f"{ONE['registry']}/{image}:")
        accelerator = container.get("resources", {}).get("accelerator", {})
        assert (accelerator.get("resourceType"), accelerator.get("resourceCount")) == (
            ("NVIDIA_L4", "1") if on_gpu else (None, None)
        )
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert variables.pop("MLFLOW_TRACKING_URI") == "http://mlflow"
        assert variables == ({"MUST_RETRIES": "4,60,2"} if STAGES[stage].retried else {})
    assert executors["train"]["resources"]["resourceCpuLimit"] == "8"
    assert "resourceCpuRequest" not in executors["shard"].get("resources", {})


def test_runs_are_known_by_the_name_that_vertex_knows_them_by(compiled):
    text = yaml.safe_dump(compiled)
    assert "{{$.pipeline_job_name}}" in text and "{{$.pipeline_job_uuid}}" not in text
    policy = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]["shard"]["retryPolicy"]
    assert policy["maxRetryCount"] == 4 and policy["backoffMaxDuration"] == "3600s"


def test_sharding_and_predicting_in_parts_are_in_the_one_document_too(tmp_path):
    parts = {"shard": {"pods": 3}, "predict": {"pods": 2, "uri": "gs://b/all"}}
    compile_pipeline(load(tmp_path, merged(ONE, parts)), tmp_path / "pipeline.yaml")
    (document,) = documents((tmp_path / "pipeline.yaml").read_text())
    images = [one["container"]["image"] for one in document["deploymentSpec"]["executors"].values()]
    assert len(images) > len(STAGES) and all(image.startswith(ONE["registry"]) for image in images)


def test_training_on_several_machines_is_a_job_of_googles_launcher(tmp_path):
    compile_pipeline(load_cluster(EXAMPLE), tmp_path / "pipeline.yaml")
    (document,) = documents((tmp_path / "pipeline.yaml").read_text())
    container = document["deploymentSpec"]["executors"]["exec-train"]["container"]
    job = json.loads(container["args"][container["args"].index("--payload") + 1])
    first, others = job["job_spec"]["worker_pool_specs"]
    assert first["replica_count"] == others["replica_count"] == 1 and "launcher" in container["command"][-1]
    assert first["container_spec"]["image_uri"].startswith("europe-west4-docker.pkg.dev/my-project/must/must-train:")
    assert "{{$.json_escape[1]}}" in first["container_spec"]["args"] and job["labels"] == {"team": "vision"}
    assert "gcp_resources" in document["components"]["comp-train"]["outputDefinitions"]["parameters"]


@pytest.mark.skipif(is_installed("google.cloud.aiplatform"), reason="the extra is installed")
def test_without_googles_client_its_extra_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text("source: gs://b/photos\n")
    arguments = ["--parameters", tmp_path / "run.yaml", "--cluster", EXAMPLE]
    monkeypatch.setattr(sys, "argv", ["must-pipeline submit", *map(str, arguments)])
    with pytest.raises(SystemExit, match="2"):
        call("submit")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("needs the package google-cloud-aiplatform here: pip install 'must-clip[vertex]'")
