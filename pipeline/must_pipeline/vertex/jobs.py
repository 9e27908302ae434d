"""The body of a run: what google-cloud-aiplatform makes of the compiled file and the parameters, checked by it."""

import hashlib
import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

from google.cloud import aiplatform, aiplatform_v1

from must.base import storage
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.vertex_rules import LABEL_VALUE
from must_pipeline.files import documents
from must_pipeline.server.parameters import check_parameters
from must_pipeline.vertex.client import VertexAi

CONTENT = "must_content"  # a label: the checksum of what was asked for
PLACES = ("source", "work_uri", "registry_uri", "test_source")


def check_run(pipeline: Path, values: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    """As `check_parameters`. Raises ValueError: what the pipeline, or a machine of Google's, could not work with."""
    values = check_parameters(pipeline, values)
    found = documents(pipeline.read_text())
    if len(found) != 1:
        raise ValueError(
            f"--pipeline {pipeline}: has {len(found)} documents, so it was compiled for Kubernetes; Vertex reads "
            "one: must-pipeline compile --cluster with a file of kind: vertex"
        )
    image = cluster.image("must-shard")
    images = [one["container"]["image"] for one in found[0]["deploymentSpec"]["executors"].values()]
    if image not in images:
        raise ValueError(
            f"--pipeline {pipeline}: was compiled with other images than cluster.yaml's ({image}); compile again"
        )
    if values.get("serve") == "apply":
        raise ValueError(
            "parameter serve: 'apply' asks the Kubernetes that the stage runs on, and Vertex has none; 'write'"
        )
    for name in PLACES:
        value = values.get(name) or ""
        if value and not storage.is_remote(value):
            raise ValueError(
                f"parameter {name}: '{value}' is a path; on Vertex every stage has a machine of its own: gs://"
            )
    return values


def make_job(cluster: Cluster, pipeline: Path, values: dict[str, Any], name: str, group: str) -> Any:
    """A run's message, after Google's client has read the file and the parameters. Raises ValueError: it refuses them.

    Args:
        name: what the page shows.
        group: the run's label `experiment`.
    """
    if not LABEL_VALUE.fullmatch(group):
        raise ValueError(f"--experiment {group}: is a label on Vertex: small letters, digits, '-' and '_', at most 63")
    labels = {**cluster.labels, "experiment": group, CONTENT: content_of(cluster, pipeline, values)}
    read = aiplatform.PipelineJob(
        display_name=name, template_path=str(pipeline), job_id=new_id("must"), labels=labels,
        pipeline_root=cluster.vertex.pipeline_root, parameter_values=values,
    )  # fmt: skip
    return aiplatform_v1.PipelineJob(
        display_name=name,
        pipeline_spec=read.pipeline_spec,
        runtime_config=read.runtime_config,
        labels=labels,
        service_account=cluster.service_account,
        network=cluster.vertex.network,
    )


def same_job(old: Any) -> Any:
    """What was asked for with a run that is there; not what Vertex added."""
    spec = type(old).to_dict(old)["pipeline_spec"]
    spec.pop("deploymentConfig", None)
    return type(old)(
        display_name=old.display_name,
        pipeline_spec=spec,
        runtime_config=old.runtime_config,
        labels={name: value for name, value in old.labels.items() if not name.startswith("vertex-ai-")},
        service_account=old.service_account,
        network=old.network,
    )


def content_of(cluster: Cluster, pipeline: Path, values: dict[str, Any]) -> str:
    vertex = cluster.vertex
    rest = [values, cluster.service_account, cluster.labels, vertex.pipeline_root, vertex.network]
    return hashlib.sha256(pipeline.read_bytes() + json.dumps(rest, sort_keys=True).encode()).hexdigest()[:32]


def new_id(name: str) -> str:
    """A run's name, which says when it began; no two are the same."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{plain}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"


def submit(options: Any, cluster: Cluster, values: dict[str, Any]) -> int:
    """`must-pipeline submit` on Vertex. Returns the exit code: 0, or 1 for a run that was waited for and failed.

    Args:
        values: the run's parameters; of a run that is started again, its own.
    """
    from must_pipeline.vertex.wait import wait

    if not options.again:
        values = check_run(options.pipeline, values, cluster)
    vertex = VertexAi(cluster.vertex, options.host)
    name = options.name or f"{options.pipeline_name} {time.strftime('%Y-%m-%d %H:%M')}"
    if options.again:
        job = same_job(vertex.job(options.again))
        job.display_name = name
    else:
        job = make_job(cluster, options.pipeline, values, name, options.experiment)
    run_id = vertex.start(job, new_id(options.pipeline_name)).name.rpartition("/")[2]
    print(f"run {run_id} started: {vertex.page(run_id)}")
    if not options.wait:
        return 0
    work_uri = dict(job.runtime_config.parameter_values).get("work_uri", "")
    return wait(vertex, run_id, str(work_uri))
