"""The end of a run in the stage summary: completes notes from the cluster's state, and deletes the run's TrainJob.

Kubeflow deletes pods half a second after a run is stopped, before a launcher can end its TrainJob or a stage can write
its last note. This code does both for them; if its requests fail, the page is still written.
"""

import logging

from must.base.exits import BUG, format_error
from must.runtime.notes import Note, read_notes, write_note
from must_components.argo import failures, parse_exit_code
from must_components.cluster import Cluster
from must_components.train_job.manifest import RUN

logger = logging.getLogger(__name__)


def settle_run(work_uri: str, run_id: str) -> list[str]:
    """Completes the notes of pods that could not write them; deletes the run's TrainJob.

    Returns sentences about the TrainJob for the page.
    """
    try:
        if (cluster := Cluster.of_this_pod()) is None:
            return []
        reasons = failures(cluster.workflow(cluster.workflow_name() or "-") or {})
        sentences = []
        for note in read_notes(work_uri, run_id):
            if note.state == "running" and note.stage in reasons:
                complete_note(note, reasons[note.stage][-1])
                write_note(work_uri, run_id, note)
            if note.facts.trainjob:
                ending = end_job(cluster, note.facts.trainjob, run_id)
                sentences += [f"{note.facts.trainjob} {ending}"] * (note.state != "done")
        return sentences
    except (ValueError, OSError, KeyError, TypeError) as error:
        logger.warning(f"must: the status of this run's pods is not known: {format_error(error)}")
        return []


def complete_note(note: Note, reason: str) -> None:
    """Adds the cluster's reason for the end of the pod to a note in the state running. A pod that ended with
    its own exit code could not write its last note."""
    note.facts.pod = reason
    if parse_exit_code(reason) is not None and not note.signalled:
        note.state, note.code = "failed", BUG
        note.lines.append(
            f"must {note.stage}: its pod ended by itself ({reason}) and could not write its last note; the pod's log "
            "says why"
        )


def end_job(cluster: Cluster, name: str, run_id: str) -> str:
    """Deletes the run's TrainJob. Returns a clause about the outcome."""
    status, job = cluster.request("GET", cluster.job_path(name))
    if status == 200:
        if (owner := (job["metadata"].get("labels") or {}).get(RUN, "")) != run_id:
            return f"belongs to the run {owner or '(no label)'} and was not deleted"
        status = cluster.delete_job(job, "Background")
    if status < 400 or status in (404, 409):
        return "was deleted; its checkpoints stay"
    return f"still runs ({status}): kubectl delete trainjob {name} -n {cluster.namespace}"
