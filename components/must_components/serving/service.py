"""What the stage serve does: writes the InferenceService beside LATEST, and applies it where it is asked to and may."""

from dataclasses import dataclass
from typing import Any

import yaml

from must.base import storage
from must.runtime.notes import stage_note
from must.runtime.places import WorkUri
from must_components.cluster import Cluster
from must_components.serving.manifest import inference_service, is_seen, require_seen

MANIFEST_FILE = "inferenceservice.yaml"  # REGISTRY/NAME/...


@dataclass(frozen=True)
class Service:
    """Where the manifest is, and the namespace where it was applied; '' where it was not."""

    manifest: str
    namespace: str


def serve(
    work_uri: str, *, registry_uri: str, model_name: str, how: str, server: dict[str, Any], output: str
) -> Service:
    """What the stage serve does."""
    with stage_note(work_uri, "serve") as note:
        registry = WorkUri(work_uri).registry(registry_uri)
        manifest = inference_service(registry, model_name, server)
        if how == "apply":
            require_seen(registry, server)
        text = yaml.safe_dump(manifest, sort_keys=False).encode()
        place = storage.join(registry, model_name, MANIFEST_FILE)
        storage.write_bytes(place, text)
        storage.write_bytes(output, text)
        namespace = Cluster.to_serve().apply(manifest) if how == "apply" else ""
        note.result = f"applied to {namespace}: {model_name}" if namespace else apply_command(place)
        print(
            note.result
            + ("" if is_seen(registry, server) else f"; first put the registry, {registry}, where a pod sees it")
        )
    return Service(place, namespace)


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
