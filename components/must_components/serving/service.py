"""The stage serve: a KServe InferenceService that follows the registry's LATEST, written beside it and, if requested,
applied. It is serving.kserve.io/v1beta1 with a container of this project."""

import json
import logging
from typing import Any

import yaml

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import one_line
from must.runtime.check import check_service_name
from must.runtime.notes import Facts
from must.runtime.places import WorkUri
from must_components.cluster import Cluster

logger = logging.getLogger(__name__)

MANIFEST_FILE = "inferenceservice.yaml"  # REGISTRY/NAME/...
PORT = 8080
KIND, GROUP, VERSION, PLURAL = "InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices"
CONTAINER = "kserve-container"  # the name that KServe looks for
GRACE_PERIOD = 60  # seconds: `must serve` drains for 5 and then answers the requests it has
SIZE = "must/server"  # annotation: replicas and resources of cluster.yaml when it was applied
# A Deployment and a Service. Knative, the default of KServe up to 0.15 and of Kubeflow's installation, refuses a pod's
# grace period, and claims and node selectors unless an administrator allows them. Up to 0.15 it was RawDeployment;
# newer versions refuse to change a server to this word.
MODE = {"serving.kserve.io/deploymentMode": "Standard"}


def serve(
    facts: Facts, work_uri: str, *, registry_uri: str, model_name: str, how: str, server: dict[str, Any], output: str
) -> dict[str, str]:  # fmt: skip
    """Returns the manifest's URI, and the namespace to which it was applied; '' if it was not applied."""
    registry = WorkUri(work_uri).registry(registry_uri)
    manifest = inference_service(registry, model_name, server)
    if how == "apply":
        require_reachable(registry, server)
    text = yaml.safe_dump(manifest, sort_keys=False).encode()
    uri = storage.join(registry, model_name, MANIFEST_FILE)
    storage.write_bytes(uri, text)
    storage.write_bytes(output, text)
    namespace = apply(manifest) if how == "apply" else ""
    facts.result = f"applied to {namespace}: {model_name}" if namespace else apply_command(uri)
    hint = f"; first put the registry, {registry}, where a pod sees it"
    print(facts.result + ("" if is_reachable(registry, server["mount"]) else hint))
    return {"manifest": uri, "namespace": namespace}


def inference_service(registry: str, name: str, server: dict[str, Any]) -> dict[str, Any]:
    """`server`: the settings of cluster.yaml, from `encode_server` in must_pipeline/cluster/placement.py.

    The server reads LATEST itself: a promotion or a rollback changes the served model, but not this object, and no pod
    restarts. Raises ValueError: Kubernetes does not permit this name."""
    check_service_name(name)
    size = server["size"]
    volumes = [{"name": "scratch", "emptyDir": {}}, *server["pod"].get("volumes", ())]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": server["image"],
        "args": ["must", "serve", "--registry", registry, "--name", name, "--host", "0.0.0.0", "--port", str(PORT)],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "env": server["env"],
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
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}, *server["mounts"]],
    }
    predictor = {
        "minReplicas": size["replicas"],
        # It decodes untrusted images and does not need Kubernetes' API.
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD,
        "containers": [container],
        **server["pod"],
        "volumes": volumes,
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "must", **server["labels"]},
            "annotations": {**MODE, SIZE: json.dumps(size)},
        },
        "spec": {"predictor": predictor},
    }


def probe(endpoint: str, **values: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{endpoint}", "port": PORT}, **values}


def keep_size(manifest: dict[str, Any], live: dict[str, Any]) -> str:
    """Copies replicas and resources of the running server into the manifest, unless cluster.yaml has changed since: so
    a promotion keeps an administrator's changes. Server-side apply alone cannot do that: an InferenceService's
    containers are one list with one owner. Returns a description of the kept values; '' if they equal cluster.yaml's.
    """
    applied = (live["metadata"].get("annotations") or {}).get(SIZE) or ""
    if storage.object_or_none(applied, dict) != json.loads(manifest["metadata"]["annotations"][SIZE]):
        return ""
    predictor, running = manifest["spec"]["predictor"], live["spec"]["predictor"]
    changes = list[str]()
    if (replicas := running.get("minReplicas", predictor["minReplicas"])) != predictor["minReplicas"]:
        predictor["minReplicas"] = replicas
        changes.append(f"replicas {replicas}")
    containers = {each.get("name"): each.get("resources") for each in running.get("containers", [])}
    if current := containers.get(CONTAINER):
        configured = predictor["containers"][0]["resources"]
        if any(current.get(kind, {}).get(key) != size for kind in configured for key, size in configured[kind].items()):
            changes.append("resources " + json.dumps(current, sort_keys=True))
        predictor["containers"][0]["resources"] = current
    return ", ".join(changes)


def is_reachable(uri: str, mount: str) -> bool:
    """Whether any pod can read it: in a bucket, or on the volume that cluster.yaml mounts there."""
    return storage.is_remote(uri) or bool(mount and f"{uri}/".startswith(f"{mount.rstrip('/')}/"))


def require_reachable(registry: str, server: dict[str, Any]) -> None:
    require(
        is_reachable(registry, server["mount"]),
        f"serve: a server's pod does not see the registry {registry}; take a bucket, or the volume of cluster.yaml",
    )


def apply(manifest: dict[str, Any], dry: bool = False) -> str:
    """Server-side apply in this pod's namespace, which is returned; a running server's replicas and resources are kept.

    `dry`: only check the permissions, KServe, and its webhooks.
    Raises ValueError: no pod, no permission, or no InferenceService; TransientError: see Cluster.request."""
    cluster = Cluster.of_this_pod()
    if cluster is None:
        raise UserError("serve: apply works in a pod of the cluster only; here, use `write`")
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{PLURAL}/{manifest['metadata']['name']}"
    status, response = cluster.request("GET", path)
    if status == 200 and (sizes := keep_size(manifest, response)) and not dry:
        logger.warning(f"serve: the cluster's values are kept, not those of cluster.yaml: {sizes}")
    if status == 403 and not dry:
        logger.warning(
            "serve: no right to read the server, so replicas and resources are those of cluster.yaml; "
            "apply deploy/serving.yaml"
        )
    patch_path = f"{path}?fieldManager=must&force=true{'&dryRun=All' * dry}"
    status, response = cluster.request("PATCH", patch_path, manifest, "application/apply-patch+yaml")
    message = one_line(response.get("message") or "no reason")[:300]
    require(
        status != 403,
        f"serve: the service account may not apply an {KIND} in {cluster.namespace}; apply "
        f"deploy/serving.yaml or use `write` ({message})",
    )
    require(status != 404, f"serve: this cluster has no {KIND}; install KServe")
    require(status < 400, f"serve: the API server refuses the {KIND}: {status} {message}")
    return cluster.namespace


def apply_command(uri: str) -> str:
    """The command that applies the manifest from a person's machine: kubectl cannot read buckets."""
    store, _, path = uri.partition("://")
    container, _, name = path.partition("/")
    copies = {
        "gs": f"gcloud storage cat {uri}",
        "s3": f"aws s3 cp {uri} -",
        "az": f"az storage blob download -c {container} -n {name} -f /dev/stdout --no-progress",
    }
    return f"{copies[store]} | kubectl apply -f -" if store in copies else f"kubectl apply -f {uri}"
