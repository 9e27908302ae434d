"""The end of a run in the stage summary: completes notes from the cluster's state, and deletes the run's TrainJob.

Kubeflow deletes pods half a second after a run is stopped, before a launcher can end its TrainJob or a stage can write
its last note. This code does both for them; if its requests fail, the page is still written."""

import logging

from must.base.exits import BUG, format_error
from must.runtime.notes import Failure, Note, read_notes, write_note
from must_components.cluster import Cluster, failures, parse_exit_code

logger = logging.getLogger(__name__)


def settle_run(work_uri: str, run_id: str) -> list[str]:
    """Completes the notes of pods that could not write them; deletes the run's TrainJob. Returns sentences about it."""
    try:
        if (cluster := Cluster.of_this_pod()) is None:
            return []
        reasons = failures(cluster.workflow(cluster.workflow_name() or "-") or {})
        sentences = []
        for note in read_notes(work_uri, run_id):
            if note.state == "running" and note.stage in reasons:
                complete_note(note, reasons[note.stage][-1])
                write_note(work_uri, run_id, note)
            if job := note.facts.trainjob:
                ending = f"{job} {cluster.end_job(job, run_id)}"
                sentences += [ending] if note.state != "done" else []
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
        text = f"its pod ended by itself ({reason}) and could not write its last note; the pod's log says why"
        note.error = Failure("", text)
