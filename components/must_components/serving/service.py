"""The stage serve: writes the InferenceService beside LATEST, and applies it if requested."""

from typing import Any

import yaml

from must.base import storage
from must.runtime.notes import Facts
from must.runtime.places import WorkUri
from must_components.cluster import Cluster
from must_components.serving.manifest import inference_service, is_reachable, require_reachable

MANIFEST_FILE = "inferenceservice.yaml"  # REGISTRY/NAME/...


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
    namespace = Cluster.to_serve().apply(manifest) if how == "apply" else ""
    facts.result = f"applied to {namespace}: {model_name}" if namespace else apply_command(uri)
    hint = "" if is_reachable(registry, server) else f"; first put the registry, {registry}, where a pod sees it"
    print(facts.result + hint)
    return {"manifest": uri, "namespace": namespace}


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
