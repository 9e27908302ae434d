"""The InferenceService, as a plain dictionary: KServe's serving.kserve.io/v1beta1 with a container of this project."""

import json
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.runtime.check import check_service_name

PORT = 8080
KIND, GROUP, VERSION, PLURAL = "InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices"
CONTAINER = "kserve-container"  # the name that KServe looks for
GRACE_PERIOD = 60  # seconds: `must serve` drains for 5 and then answers the requests it has
SIZE = "must/server"  # annotation: replicas and resources of cluster.yaml when it was applied
# A Deployment and a Service. Knative, the default of KServe up to 0.15 and of Kubeflow's installation, refuses a pod's
# grace period, and claims and node selectors unless an administrator allows them. Up to 0.15 it was RawDeployment;
# newer versions refuse to change a server to this word.
MODE = {"serving.kserve.io/deploymentMode": "Standard"}


def inference_service(registry: str, name: str, server: dict[str, Any]) -> dict[str, Any]:
    """`server`: the settings of cluster.yaml, from must_pipeline/cluster/nodes.py.

    The server reads LATEST itself: a promotion or a rollback changes the served model, but not this object, and no pod
    restarts. Raises ValueError: Kubernetes does not permit this name.
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
        # It decodes untrusted images and does not need Kubernetes' API.
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
    """Copies replicas and resources of the running server into the manifest, unless cluster.yaml has changed since.

    So a promotion keeps an administrator's changes. Server-side apply alone cannot do that: it treats the containers of
    an InferenceService as one list with one owner.
    Returns a description of the kept values; '' if they equal cluster.yaml's.
    """
    applied = (live["metadata"].get("annotations") or {}).get(SIZE) or ""
    if storage.object_or_none(applied, dict) != json.loads(manifest["metadata"]["annotations"][SIZE]):
        return ""
    predictor, running = manifest["spec"]["predictor"], live["spec"]["predictor"]
    changes = list[str]()
    if (replicas := running.get("minReplicas", predictor["minReplicas"])) != predictor["minReplicas"]:
        predictor["minReplicas"] = replicas
        changes.append(f"replicas {replicas}")
    for container in running.get("containers", []):
        current, configured = container.get("resources") or {}, predictor["containers"][0]["resources"]
        if container.get("name") != CONTAINER or not current:
            continue
        if any(current.get(kind, {}).get(key) != size for kind in configured for key, size in configured[kind].items()):
            changes.append("resources " + json.dumps(current, sort_keys=True))
        predictor["containers"][0]["resources"] = current
    return ", ".join(changes)


def is_reachable(registry: str, server: dict[str, Any]) -> bool:
    """Whether a server's pod can read the registry: in a bucket, or on the volume of cluster.yaml."""
    mount = server.get("mount", "")
    return storage.is_remote(registry) or bool(mount and f"{registry}/".startswith(f"{mount.rstrip('/')}/"))


def require_reachable(registry: str, server: dict[str, Any]) -> None:
    require(
        is_reachable(registry, server),
        f"serve: a server's pod does not see the registry {registry}; take a bucket, or the volume of cluster.yaml",
    )


def add_volume(predictor: dict[str, Any], name: str, mount_path: str, source: dict[str, Any]) -> None:
    predictor["volumes"].append({"name": name, **source})
    predictor["containers"][0]["volumeMounts"].append({"name": name, "mountPath": mount_path, "readOnly": True})


def probe(endpoint: str, **values: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{endpoint}", "port": PORT}, **values}
