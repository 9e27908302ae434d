"""What the stage serve does: writes the InferenceService beside LATEST, and applies it where it is asked to and may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from must.base import storage
from must.base.parameters import require
from must.base.storage import TransientError, is_transient
from must.runtime.notes import stage_note
from must.runtime.places import WorkUri
from must_components.serving.manifest import GROUP, PLURAL, VERSION, inference_service, is_seen

FILE = "inferenceservice.yaml"  # REGISTRY/NAME/...
MANAGER = "must"  # in Kubernetes' book of who set which field
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LIMIT = (5, 30)  # seconds for connecting, and for an answer


def serve(
    work_uri: str, *, registry_uri: str, model_name: str, how: str, server: dict[str, Any], output: str
) -> dict[str, str]:
    """Returns where the manifest is, and the namespace where it was applied ('' where it was not)."""
    with stage_note(work_uri, "serve") as note:
        registry = WorkUri(work_uri).registry(registry_uri)
        manifest = inference_service(registry, model_name, server)
        seen = is_seen(registry, server)
        require(
            seen or how != "apply",
            f"serve: a server's pod does not see the registry {registry}; take a bucket, or the volume of cluster.yaml",
        )
        text = yaml.safe_dump(manifest, sort_keys=False).encode()
        place = storage.join(registry, model_name, FILE)
        storage.write_bytes(place, text)
        storage.write_bytes(output, text)
        namespace = apply(manifest) if how == "apply" else ""
        note.result = f"applied to {namespace}: {model_name}" if namespace else apply_command(place)
        print(note.result + ("" if seen else f"; first put the registry, {registry}, where a pod sees it"))
    return {"manifest": place, "namespace": namespace}


def apply_command(place: str) -> str:
    """What applies the manifest from a person's machine: kubectl reads no bucket."""
    store, _, rest = place.partition("://")
    container, _, name = rest.partition("/")
    copies = {
        "gs": f"gcloud storage cat {place}",
        "s3": f"aws s3 cp {place} -",
        "az": f"az storage blob download -c {container} -n {name} -f /dev/stdout --no-progress",
    }
    return f"{copies[store]} | kubectl apply -f -" if store in copies else f"kubectl apply -f {place}"


def apply(manifest: dict[str, Any]) -> str:
    """Server-side apply, so that what others set on the object (replicas, resources) stays theirs; the namespace.

    Raises:
        ValueError: not in a cluster, no right to do it, or the cluster knows no InferenceService.
        TransientError: the API server does not answer.
    """
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        config.load_incluster_config()
        namespace = NAMESPACE.read_text().strip()
    except (config.ConfigException, OSError):
        raise ValueError("serve: apply works in a pod of the cluster only; here, take `write`") from None
    name = manifest["metadata"]["name"]
    try:
        # The generated method takes no content type; an apply is told from other patches by that alone.
        client.ApiClient().call_api(
            f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}", "PATCH",
            query_params=[("fieldManager", MANAGER), ("force", "true")], body=manifest, auth_settings=["BearerToken"],
            header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
            response_type="object", _request_timeout=LIMIT,
        )  # fmt: skip
    except client.ApiException as error:
        raise refusal(error, namespace) from None
    except (HTTPError, OSError) as error:
        raise TransientError(f"serve: the API server does not answer ({type(error).__name__})") from None
    return namespace


def refusal(error: Any, namespace: str) -> ValueError:
    if error.status == 403:
        return ValueError(
            f"serve: the service account may not apply an InferenceService in {namespace}; deploy/serving.yaml lets "
            "it, or take `write` and apply the file yourself"
        )
    if error.status == 404:
        return ValueError("serve: this cluster knows no InferenceService; KServe is not installed")
    if is_transient(error.status):
        return TransientError(f"serve: the API server answers {error.status}")
    return ValueError(f"serve: the API server refuses the InferenceService: {error.status} {error.reason}")
