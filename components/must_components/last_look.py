"""The last requests to the cluster before the stage summary writes its page; if they fail, the page is still written.

Kubeflow deletes pods half a second after a run is stopped, before a launcher can end its TrainJob or a stage can write
its last note. This code does both for them.
"""

import logging
import os
from typing import Any

from must.base.exits import line_of
from must.runtime.notes import read_notes, settle
from must_components.argo import exit_code_of, failures, is_stopped
from must_components.cluster import TRAINER, Cluster

logger = logging.getLogger(__name__)
RUN = "pipeline/runid"  # label of a TrainJob, as train_job/manifest.py gives it


def last_look(work_uri: str, run_id: str) -> list[str]:
    """Completes the notes of pods that could not write them; ends the TrainJob of a run that was stopped.

    Returns sentences about the TrainJob for the page.
    """
    try:
        cluster = Cluster.of_this_pod()
        workflow = workflow_of_this_pod(cluster) if cluster else None
        if cluster is None or workflow is None:
            return []
        reasons = {stage: messages[-1] for stage, messages in failures(workflow).items()}
        ended = {stage for stage, reason in reasons.items() if exit_code_of(reason) is not None}
        settle(work_uri, run_id, reasons, ended)
        if not is_stopped(workflow):
            return []
        jobs = [note.facts.trainjob for note in read_notes(work_uri, run_id) if note.facts.trainjob]
        return [end_job(cluster, job, run_id) for job in jobs]
    except (ValueError, OSError, KeyError, TypeError) as error:
        logger.warning(f"must: the status of this run's pods is not known: {line_of(error)}")
        return []


def workflow_of_this_pod(cluster: Cluster) -> dict[str, Any] | None:
    """The Argo workflow; None if it cannot be read."""
    namespace, pod_name = f"namespaces/{cluster.namespace}", os.environ.get("KFP_POD_NAME", "")
    status, pod = cluster.request("GET", f"/api/v1/{namespace}/pods/{pod_name}")
    name = (pod.get("metadata", {}).get("labels") or {}).get("workflows.argoproj.io/workflow")
    if status != 200 or not name:
        return None
    status, workflow = cluster.request("GET", f"/apis/argoproj.io/v1alpha1/{namespace}/workflows/{name}")
    return workflow if status == 200 else None


def end_job(cluster: Cluster, job: str, run_id: str) -> str:
    """Suspends the job, which ends its pods, and deletes it. Returns a sentence about the outcome.

    Trainer 2.3 creates a JobSet again while it is being deleted, but starts no pods for a suspended job.
    """
    path = f"/apis/{TRAINER}/v1alpha1/namespaces/{cluster.namespace}/trainjobs/{job}"
    status, response = cluster.request("GET", path)
    if status == 404:
        return f"{job} was ended; its checkpoints stay"
    if status == 200:
        metadata = response["metadata"]
        if (other := (metadata.get("labels") or {}).get(RUN, run_id)) != run_id:
            return f"{job} belongs to the run {other} now and was not ended"
        if "deletionTimestamp" not in metadata:
            patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"suspend": True}}
            cluster.request("PATCH", path, patch, "application/merge-patch+json")
            options = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
            status, _ = cluster.request("DELETE", path, options)
        if status < 400 or status in (404, 409):
            return f"{job} was ended; its checkpoints stay"
    return f"{job} still runs ({status}): kubectl delete trainjob {job} -n {cluster.namespace}"
