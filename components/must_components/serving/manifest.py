"""The InferenceService, as a plain dictionary: KServe's serving.kserve.io/v1beta1 with a container of our own."""

import json
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.runtime.check import check_service_name

PORT = 8080
KIND, GROUP, VERSION, PLURAL = "InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices"
CONTAINER = "kserve-container"  # the name that KServe looks for
GRACE_PERIOD = 60  # seconds: `must serve` drains for 5 and then answers what there is
SIZE = "must/server"  # annotation: replicas and resources of cluster.yaml when it was applied
OLD_SIZE = {"replicas": 1, "cpu": "1", "memory": "2Gi", "memory_limit": "4Gi"}  # of servers from before it
# A Deployment and a Service. Knative, the default of KServe up to 0.15 and of Kubeflow's installation, refuses a pod's
# grace period, and claims and node selectors unless an administrator allows them. Newer ones read it as Standard.
MODE = {"serving.kserve.io/deploymentMode": "RawDeployment"}


def inference_service(registry: str, name: str, server: dict[str, Any]) -> dict[str, Any]:
    """`server`: what cluster.yaml says, by must_pipeline/cluster/nodes.py.

    The server looks at LATEST itself: the object stays the same from one promotion to the next, no pod is started anew,
    and what is served is what the registry says, also after a rollback.

    Raises:
        ValueError: no name that Kubernetes takes.
    """
    check_service_name(name)
    size = server["size"]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": server["image"],
        "args": ["must", "serve", "--registry", registry, "--name", name, "--host", "0.0.0.0", "--port", str(PORT)],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "env": [{"name": key, "value": value} for key, value in server.get("env", {}).items()],
        "startupProbe": probe("live", failureThreshold=60, periodSeconds=5),
        "readinessProbe": probe("ready", periodSeconds=5),
        "livenessProbe": probe("live", periodSeconds=15, timeoutSeconds=5),
        "resources": {
            "requests": {"cpu": size["cpu"], "memory": size["memory"]},
            "limits": {"memory": size["memory_limit"]},
        },
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    predictor: dict[str, Any] = {
        "minReplicas": size["replicas"],
        # It decodes strangers' images, and asks the cluster for nothing.
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD,
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    if server.get("service_account"):
        predictor["serviceAccountName"] = server["service_account"]
    if server.get("pull_secrets"):
        predictor["imagePullSecrets"] = [{"name": secret} for secret in server["pull_secrets"]]
    if server.get("secret"):
        container["env"].append(
            {"name": server["secret_variable"], "value": f"{server['secret_mount']}/{server['secret_key']}"}
        )
        add_volume(predictor, "key", server["secret_mount"], {"secret": {"secretName": server["secret"]}})
    if server.get("claim"):
        claim = {"persistentVolumeClaim": {"claimName": server["claim"], "readOnly": True}}
        add_volume(predictor, "data", server["mount"], claim)
    if server.get("node_selector"):
        predictor["nodeSelector"] = server["node_selector"]
    if server.get("tolerations"):
        predictor["tolerations"] = server["tolerations"]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "must", **server.get("labels", {})},
            "annotations": {**MODE, SIZE: json.dumps(size)},
        },
        "spec": {"predictor": predictor},
    }


def keep_size(manifest: dict[str, Any], live: dict[str, Any]) -> str:
    """Puts replicas and resources of the server that is there into the manifest, unless cluster.yaml has changed since.

    Whoever gave a running server more is not overruled by a promotion. Server-side apply alone cannot do that: KServe's
    containers are one list to it, which belongs to the one or the other as a whole.

    Returns:
        What was kept, for people; '' where it is what cluster.yaml says.
    """
    before = (live["metadata"].get("annotations") or {}).get(SIZE, json.dumps(OLD_SIZE))
    if manifest["metadata"]["annotations"][SIZE] != before:
        return ""
    ours, theirs = manifest["spec"]["predictor"], live["spec"]["predictor"]
    kept = list[str]()
    if (replicas := theirs.get("minReplicas", ours["minReplicas"])) != ours["minReplicas"]:
        ours["minReplicas"] = replicas
        kept.append(f"replicas {replicas}")
    for container in theirs.get("containers", []):
        found, wanted = container.get("resources") or {}, ours["containers"][0]["resources"]
        if container.get("name") != CONTAINER or not found:
            continue
        if any(found.get(kind, {}).get(name) != value for kind in wanted for name, value in wanted[kind].items()):
            kept.append("resources " + json.dumps(found, sort_keys=True))
        ours["containers"][0]["resources"] = found
    return ", ".join(kept)


def is_seen(registry: str, server: dict[str, Any]) -> bool:
    """Whether a server's pod sees the registry: in a bucket, or on the volume of cluster.yaml."""
    mount = server.get("mount", "")
    return storage.is_remote(registry) or bool(mount and f"{registry}/".startswith(f"{mount.rstrip('/')}/"))


def require_seen(registry: str, server: dict[str, Any]) -> None:
    require(
        is_seen(registry, server),
        f"serve: a server's pod does not see the registry {registry}; take a bucket, or the volume of cluster.yaml",
    )


def add_volume(predictor: dict[str, Any], name: str, place: str, source: dict[str, Any]) -> None:
    predictor["volumes"].append({"name": name, **source})
    predictor["containers"][0]["volumeMounts"].append({"name": name, "mountPath": place, "readOnly": True})


def probe(what: str, **values: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{what}", "port": PORT}, **values}
