"""Every pod of a run, of a TrainJob and of the server is let into a namespace under Pod Security's `restricted`."""

import re
from typing import Any

import pytest
import yaml

from must.table import PODS
from must_components.train_job import make_manifest
from must_pipeline.cluster import load_cluster
from must_pipeline.compile import load_documents
from tests.common import ROOT
from tests.components.conftest import nodes
from tests.components.trainer import admit, build_job
from tests.pipeline.compiled import CLUSTER, compiled_for

CLUSTERS = [CLUSTER, *(CLUSTER.with_name("clusters") / f"{name}.yaml" for name in ("gke", "eks", "openshift"))]
KNOWN = {
    "pvcMount", "secretAsVolume", "emptyDirMounts", "securityContext", "nodeSelector", "tolerations", "podMetadata",
    "imagePullSecret", "imagePullPolicy", "activeDeadlineSeconds",
}  # fmt: skip
PIPELINES_OWN = {  # security_context.go of Kubeflow Pipelines 2.17, of a container that a user names an image for
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = ("RuntimeDefault", "Localhost")
OF_PODS = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile"}
OF_CONTAINERS = OF_PODS | {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse a pod of this spec for, by the level `restricted` as its page has it for 1.35,
    for Linux pods, as far as pods of ours have the fields that it is about; another field of a security context is a
    violation here. Nothing where it is admitted."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext") or {}
    found += sorted(context.keys() - OF_PODS)
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    assert not {"initContainers", "ephemeralContainers"} & pod.keys()
    for container in pod["containers"]:
        found += [f"{container['name']}: {what}" for what in of_container(container, context)]
    return found


def of_container(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    own = container.get("securityContext") or {}
    capabilities, seccomp = own.get("capabilities") or {}, own.get("seccompProfile") or pod.get("seccompProfile") or {}
    wrong = {
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is not False,
        "runAsNonRoot is not true": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True,
        "runAsUser is 0": 0 in (own.get("runAsUser"), pod.get("runAsUser")),
        "no seccompProfile": seccomp.get("type") not in PROFILES,
        "capabilities are not dropped": "ALL" not in capabilities.get("drop", []),
    }
    found = [*sorted(own.keys() - OF_CONTAINERS), *(what for what, is_so in wrong.items() if is_so)]
    found += [f"capability {one}" for one in capabilities.get("add", []) if one != "NET_BIND_SERVICE"]
    return found + [f"hostPort {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort")]


def stage_pods(file):
    """(executor, pod) as the driver of Pipelines 2.17 makes it, as far as the rules look."""
    spec, platform = load_documents(compiled_for(file).read_text())
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


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.stem)
def test_every_stage_is_admitted_and_asks_for_cores_and_memory_with_a_limit(file):
    pods = dict(stage_pods(file))
    assert len(pods) >= len(PODS) - 2
    for name, pod in pods.items():
        assert violations(pod) == [], name
        resources = pod["containers"][0]["resources"]
        assert resources.get("resourceCpuRequest") or resources.get("resourceCpuLimit"), name
        assert resources.get("resourceMemoryRequest") or resources.get("resourceMemoryLimit"), name
        given = load_cluster(file).resources.get(re.sub(r"^exec-|-(job|part|\d+)$", "", name))
        if not (given and given.memory):
            assert resources["resourceMemoryLimit"].endswith("Gi"), name


@pytest.mark.parametrize("name", ["gke", "openshift"])
def test_a_trainjobs_pods_are_admitted_and_mount_no_token(name):
    job = admit(make_manifest("must-train-1", nodes(name), "job", "r1", ""), "2.3", False)
    made = build_job(job, yaml.safe_load((ROOT / "deploy/training-runtime.yaml").read_text()))
    pod = made["template"]["spec"]["template"]["spec"]
    assert violations(pod) == [] and pod["automountServiceAccountToken"] is False
    assert {volume["name"] for volume in pod["volumes"]} >= {"shm"}


def test_the_server_is_admitted_and_mounts_no_token():
    service = yaml.safe_load((ROOT / "deploy/inference-service.yaml").read_text())
    pod = service["spec"]["predictor"]
    assert violations(pod) == [] and pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_cluster_yaml_names_the_limits_of_the_table():
    text = " ".join(CLUSTER.read_text().replace("\n#", " ").split())
    limits = ", ".join(f"{stage} {row.memory}" for stage, row in PODS.items())
    assert f"memory limit in GiB is (times the number of its GPUs, plus shm): {limits}." in text
