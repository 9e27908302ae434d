"""Every pod of a run, of a TrainJob and of the server is let into a namespace under Pod Security's `restricted`."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from must_components.serving.manifest import inference_service
from must_pipeline.cluster.nodes import encode_server
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER, documents
from must_pipeline.stages import STAGES
from tests.components.launching import completes, nodes, train
from tests.components.trainer import merge
from tests.pipeline.compiled import compiled_for
from tests.pod_security import violations

DEPLOY = Path(__file__).parents[2] / "deploy"
CLUSTERS = [CLUSTER, *(CLUSTER.with_name("clusters") / f"{name}.yaml" for name in ("gke", "eks", "openshift"))]
PIPELINES_OWN = {  # security_context.go of Kubeflow Pipelines 2.17, of a container that a user names an image for
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip


def stage_pods(file):
    """(executor, pod) as the driver of Pipelines 2.17 makes it, as far as the rules look."""
    spec, platform = documents(compiled_for(file).read_text())
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, executor in spec["deploymentSpec"]["executors"].items():
        own = settings[name]
        volumes = [{"name": "data", "persistentVolumeClaim": {}} for _ in own.get("pvcMount", [])]
        volumes += [{"name": one["secretName"], "secret": {}} for one in own.get("secretAsVolume", [])]
        volumes += [{"name": one["volumeName"], "emptyDir": {}} for one in own.get("emptyDirMounts", [])]
        context = PIPELINES_OWN | own.get("securityContext", {})
        container = {"name": "main", "securityContext": context, "resources": executor["container"]["resources"]}
        assert not own.keys() - KNOWN, "a setting that this stand-in for the driver does not know"
        pod = {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "volumes": volumes}
        yield name, pod | {"containers": [container]}


KNOWN = {
    "pvcMount", "secretAsVolume", "emptyDirMounts", "securityContext", "nodeSelector", "tolerations", "podMetadata",
    "imagePullSecret", "imagePullPolicy", "activeDeadlineSeconds",
}  # fmt: skip


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.stem)
def test_every_stage_is_admitted_and_asks_for_cores_and_memory_with_a_limit(file):
    pods = dict(stage_pods(file))
    assert len(pods) >= len(STAGES) - 1
    for name, pod in pods.items():
        assert violations(pod) == [], name
        resources = pod["containers"][0]["resources"]
        assert resources.get("resourceCpuRequest") or resources.get("resourceCpuLimit"), name
        assert resources.get("resourceMemoryRequest") or resources.get("resourceMemoryLimit"), name
        given = load_cluster(file).resources.get(re.sub(r"^exec-|-(job|part|\d+)$", "", name))
        if not (given and given.memory):
            assert resources["resourceMemoryLimit"].endswith("Gi"), name


@pytest.mark.parametrize("name", ["gke", "openshift"])
def test_a_trainjobs_pods_are_admitted_and_mount_no_token(api, work, name):
    api.on_start = completes(work)
    train(work, nodes=nodes(name))
    (job,) = api.created
    runtime = yaml.safe_load((DEPLOY / "training-runtime.yaml").read_text())
    (part,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = copy.deepcopy(part["template"]["spec"]["template"])
    merge(pod, node["template"]["spec"]["template"])
    assert violations(pod["spec"]) == [] and pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}  # the least
    assert {volume["name"] for volume in pod["spec"]["volumes"]} >= {"shm"}


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.stem)
def test_the_server_is_admitted_and_mounts_no_token(file):
    pod = inference_service("gs://b/registry", "photos", encode_server(load_cluster(file)))["spec"]["predictor"]
    assert violations(pod) == [] and pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_rules_refuse_what_they_are_for():
    good = {
        "securityContext": {"runAsNonRoot": True}, "containers": [{"name": "main", "securityContext": PIPELINES_OWN}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }  # fmt: skip
    assert violations(good) == []
    for change in (
        {"hostNetwork": True}, {"securityContext": {}}, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}},
        *({"containers": [{"name": "main", "securityContext": {k: v for k, v in PIPELINES_OWN.items() if k != left}}]}
          for left in PIPELINES_OWN),
        {"containers": [{"name": "main", "securityContext": PIPELINES_OWN | {"capabilities": {
            "drop": ["ALL"], "add": ["SYS_ADMIN"]}}}]},
    ):  # fmt: skip
        assert len(violations(good | change)) == 1, change


def test_cluster_yaml_names_the_limits_of_the_table():
    text = " ".join(CLUSTER.read_text().replace("\n#", " ").split())
    limits = ", ".join(f"{stage} {row.memory}" for stage, row in STAGES.items())
    assert f"memory limit in GiB is (times the number of its GPUs, plus shm): {limits}." in text
