"""The data and the pretrained model of a promoted model, as an OpenLineage event (openlineage.io, spec 2-0-2).

    REGISTRY/NAME/VERSION/openlineage.json

The file is not sent anywhere: POST it to /api/v1/lineage of a server for lineage (Marquez, DataHub, ...).
"""

import json
import os
import uuid
from datetime import UTC, datetime
from typing import Any

from must import __version__
from must.base import storage
from must.base.lock import RUN_ID
from must.deploy.promote.registry import Registry
from must.method.model.bundle import load_description
from must.runtime.places import WorkUri

LINEAGE_FILE = "openlineage.json"
MODEL_ENDINGS = (".safetensors", ".onnx")
PRODUCER = f"pkg:pypi/must-clip@{__version__}"
SPEC = "https://openlineage.io/spec"


def write_lineage(work_uri: str, registry: Registry, version: str) -> None:
    """Raises ValueError or OSError: the version cannot be read, or the event cannot be written."""
    event = lineage(work_uri, registry, version, os.environ.get(RUN_ID, ""))
    storage.write_bytes(registry.uri_of(version, LINEAGE_FILE), json.dumps(event, indent=1).encode())


def lineage(work_uri: str, registry: Registry, version: str, run_id: str) -> dict[str, Any]:
    """The event COMPLETE of the run that promoted the version.

    Inputs are the shards, with the sha256 of their index, and the pretrained model, with that of its weights. Outputs
    are the version and the files of its models. Class names and prompts are in the bundle.
    `run_id`: Kubeflow's id; if it is no UUID, a UUID is computed from it and `work_uri`.
    """
    provenance = load_description(registry.bundle(version)).provenance
    inputs = [dataset(WorkUri(work_uri).shards, provenance.index_sha256)]
    if provenance.model_folder:
        inputs.append(dataset(provenance.model_folder, provenance.model_sha256))
    models = {name: sha256 for name, sha256 in registry.checksums(version).items() if name.endswith(MODEL_ENDINGS)}
    outputs = [dataset(registry.uri_of(version, *name.split("/")), sha256) for name, sha256 in models.items()]
    engine = facet("1-1-1/ProcessingEngineRunFacet", name="must", version=__version__)
    tags = [{"key": "git_revision", "value": provenance.git_revision or "unknown", "source": "must"}]
    kind = facet("2-0-4/JobTypeJobFacet", processingType="BATCH", integration="KUBEFLOW", jobType="PIPELINE")
    return {
        "eventType": "COMPLETE",
        "eventTime": datetime.now(UTC).isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {
            "runId": uuid_of(run_id, work_uri),
            "facets": {"processing_engine": engine, "tags": facet("1-0-0/TagsRunFacet", tags=tags)},
        },
        "job": {"namespace": namespace_of(work_uri)[0], "name": f"must.{registry.name}", "facets": {"jobType": kind}},
        "inputs": inputs,
        "outputs": [dataset(registry.uri_of(version), version), *outputs],
    }


def dataset(uri: str, version: str) -> dict[str, Any]:
    """A dataset of OpenLineage. `version` identifies its content."""
    namespace, name = namespace_of(uri)
    facets = {"version": facet("1-0-1/DatasetVersionDatasetFacet", datasetVersion=version)}
    return {"namespace": namespace, "name": name, "facets": facets}


def namespace_of(uri: str) -> tuple[str, str]:
    """(namespace, name) by OpenLineage's rules: a bucket with its scheme and the path in it, or 'file' and a path."""
    if not storage.is_remote(uri):
        return "file", str(storage.local(uri).absolute())
    scheme, _, path = uri.partition("://")
    bucket, _, name = path.partition("/")
    return f"{scheme}://{bucket}", name or "/"


def facet(schema: str, **values: Any) -> dict[str, Any]:
    number, name = schema.split("/")
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{number}/{name}.json#/$defs/{name}", **values}


def uuid_of(run_id: str, work_uri: str) -> str:
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{work_uri}#{run_id}"))
