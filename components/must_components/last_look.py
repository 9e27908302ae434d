"""What the stage summary asks the cluster before it writes the page, and does there; a refusal stops no page.

Kubeflow's own pods are gone half a second after a run is ended: too early for a launcher to end its TrainJob, and for a
stage whose store refused it to leave its last note. Here is time for both.
"""

import logging
import os
from typing import Any

from must.base.exits import line_of
from must.runtime.notes import read_notes, settle
from must_components.argo import failures, is_stopped, own_code
from must_components.cluster import TRAINER, Cluster

logger = logging.getLogger(__name__)
RUN = "pipeline/runid"  # label of a TrainJob, as train_job/manifest.py gives it


def last_look(work_uri: str, run_id: str) -> list[str]:
    """Puts into the notes why pods ended that left none; ends the TrainJob of a run that is ended.

    Returns:
        Lines for the page.
    """
    try:
        cluster = Cluster.of_this_pod()
        workflow = workflow_of_this_pod(cluster) if cluster else None
        if cluster is None or workflow is None:
            return []
        why = {stage: found[-1] for stage, found in failures(workflow).items()}
        settle(work_uri, run_id, why, {stage for stage, text in why.items() if own_code(text) is not None})
        if not is_stopped(workflow):
            return []
        jobs = [note.facts.trainjob for note in read_notes(work_uri, run_id) if note.facts.trainjob]
        return [f"- **TrainJob**: {end(cluster, job, run_id)}" for job in jobs]
    except (ValueError, OSError, KeyError, TypeError) as error:
        logger.warning(f"must: the status of this run's pods is not known: {line_of(error)}")
        return []


def workflow_of_this_pod(cluster: Cluster) -> dict[str, Any] | None:
    """The Argo workflow; None where it cannot be read."""
    space, pod = f"namespaces/{cluster.namespace}", os.environ.get("KFP_POD_NAME", "")
    status, found = cluster.ask("GET", f"/api/v1/{space}/pods/{pod}")
    name = (found.get("metadata", {}).get("labels") or {}).get("workflows.argoproj.io/workflow")
    if status != 200 or not name:
        return None
    status, workflow = cluster.ask("GET", f"/apis/argoproj.io/v1alpha1/{space}/workflows/{name}")
    return workflow if status == 200 else None


def end(cluster: Cluster, job: str, run_id: str) -> str:
    """Suspends the job, which ends its pods, and deletes it; what became of it, for people.

    Trainer 2.3 makes the JobSet of a job anew while that is being deleted, but starts no pods of a suspended one.
    """
    where = f"/apis/{TRAINER}/v1alpha1/namespaces/{cluster.namespace}/trainjobs/{job}"
    status, found = cluster.ask("GET", where)
    if status == 404:
        return f"`{job}` was ended; its checkpoints stay"
    if status == 200:
        own = found["metadata"]
        if (other := (own.get("labels") or {}).get(RUN, run_id)) != run_id:
            return f"`{job}` is the run's {other} by now, which attached to it: it trains on"
        if "deletionTimestamp" not in own:
            patch = {"metadata": {"uid": own["uid"]}, "spec": {"suspend": True}}
            cluster.ask("PATCH", where, patch, "application/merge-patch+json")
            options = {"propagationPolicy": "Foreground", "preconditions": {"uid": own["uid"]}}
            status, _ = cluster.ask("DELETE", where, options)
        if status < 400 or status in (404, 409):
            return f"`{job}` was ended; its checkpoints stay"
    return f"`{job}` still runs ({status}): `kubectl delete trainjob {job} -n {cluster.namespace}`"
