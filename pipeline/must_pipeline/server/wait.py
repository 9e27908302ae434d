"""Waits for the end of a run on Kubeflow Pipelines and says what came of it."""

import re
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

from must.base import storage
from must.base.exits import line_of
from must.base.text import printable, printable_page
from must.runtime.notes import read_notes
from must.runtime.outcome import failing, failure_kind
from must.runtime.places import WorkUri
from must.runtime.stages import follow_ups
from must.runtime.summary import SUMMARY_FILE, as_text, is_current, summarize
from must_components.argo import failures, is_refused
from must_pipeline.server.api import Kfp, api_errors
from must_pipeline.server.workflows import Workflows

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
GOOD = ("SUCCEEDED", "SKIPPED")
POLL = 15.0  # seconds
THIRD = 3  # bad endings of one stage that are worth a line
SERVER_TIMEOUT = 900.0  # seconds without an answer after which waiting is given up
FRAMES = re.compile(  # around the stages
    r"executor|root|(exit-handler|condition|condition-branches|for-loop)-\d+(\.onExit)?|iteration-(iterations|item)|must-[a-z0-9]{5}"
)


class Ending(NamedTuple):
    code: int  # 0, or 1 for a run that failed or whose workflow is gone
    lost: bool = False  # what ended it came from outside and was no person: the same may be started again


def wait(kfp: Kfp, run_id: str, work_uri: str, again: str, namespace: str = "") -> Ending:
    """What came of the run, once it is over.

    Args:
        work_uri: where the run's notes are; the page about it is read there, if it can be read from here.
        again: the command that starts the run again.

    Raises:
        TransientError: the server gave no answer for SERVER_TIMEOUT seconds.
    """
    workflow, shown, missed = Workflows(namespace or "kubeflow", run_id), "", 0
    told = set[str]()
    while True:
        run = get_run_with_retry(kfp, run_id)
        state = run.state or "PENDING"
        now = " ".join([state.lower(), *running(run)])
        if now != shown:
            shown = now
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
        if state in OVER:
            workflow.exists()
            code = report(run, state, text_of(run, work_uri, run_id, again), failures(workflow.latest))
            return Ending(code, state not in GOOD and is_lost(run, work_uri, run_id))
        missed = missed + 1 if workflow.is_gone() else 0
        if (stage := tell_trouble(run, workflow.latest, told)) is not None:
            print(
                f"this run cannot succeed: Kubernetes rejects the pods of {stage}; retries may last hours. "
                f"Correct it, terminate the run in Kubeflow's page, and start it again: {again}",
                file=sys.stderr,
            )
            return Ending(1)
        if missed > 1:  # the first time, the run's last state may be on its way
            print(
                f"the workflow of the run {run_id} was deleted: Kubeflow keeps the state {state.lower()}. "
                f"Start it again: {again}",
                file=sys.stderr,
            )
            return Ending(1)
        time.sleep(POLL)


def get_run_with_retry(kfp: Kfp, run_id: str) -> Any:
    """The run, asked for until the server answers."""

    def ask() -> Any:
        with api_errors(kfp.host):
            return kfp.runs.run_service_get_run(run_id)

    return storage.repeat(kfp.host, ask, timeout=SERVER_TIMEOUT, on_first=tell_silence)


def tell_silence(error: Exception) -> None:
    minutes = f"{SERVER_TIMEOUT / 60:g} min"
    print(f"{time.strftime('%H:%M:%S')} no answer, retrying for {minutes}: {line_of(error)}", flush=True)


def tell_trouble(run: Any, workflow: dict[str, Any], told: set[str]) -> str | None:
    """Says once of each stage that it has failed for the third time, and why; the stage that can never start.

    Without a right to see the workflow, Kubeflow's own list of tries has the number and no reason.
    """
    found = failures(workflow) or {name: [""] * count for name, count in tries_failed(run).items()}
    for stage, why in found.items():
        if len(why) >= THIRD and stage not in told:
            told.add(stage)
            reason = why[-1] or "the workflow's events say why (kubectl describe workflow)"
            print(
                f"{time.strftime('%H:%M:%S')} {stage} failed {len(why)} times: {printable(reason, 1000)}",
                flush=True,
            )
            if is_refused(reason):
                return stage
    return None


def tries_failed(run: Any) -> Counter[str]:
    """A try that failed is STAGE(0), STAGE(1), ... in Kubeflow's list; what is around the stages is left out."""
    details = (run.run_details and run.run_details.task_details) or []
    tries = [re.sub(r"\(\d+\)$", "", task.display_name) for task in details
             if task.state == "FAILED" and task.display_name.endswith(")")]  # fmt: skip
    return Counter(name for name in tries if not FRAMES.fullmatch(name))


def report(run: Any, state: str, page: str, why: dict[str, list[str]]) -> int:
    if state not in GOOD:
        if was_terminated(run):
            print("the run was ended by a person")
        elif not page:
            print(f"failed: {', '.join(failed(run)) or 'no stage has begun'}")
            for stage, reasons in why.items():
                print(f"{stage}: {printable(reasons[-1], 1000)}")
    print(
        f"\n{printable_page(page)}" if page else "\nThe page about it is the artifact of the stage summary.", flush=True
    )
    return 0 if state in GOOD else 1


def was_terminated(run: Any) -> bool:
    return any(entry.state in ("CANCELING", "CANCELED") for entry in run.state_history or [])


def is_lost(run: Any, work_uri: str, run_id: str) -> bool:
    """Whether the stage that ended the run was asked to end, or fell silent, and nobody terminated the run."""
    try:
        note = failing(read_notes(work_uri, run_id))
    except (ValueError, OSError):  # the notes cannot be read from here
        return False
    return note is not None and failure_kind(note) in ("stopped", "silent") and not was_terminated(run)


def name_successor(work_uri: str, run_id: str, successor: str) -> None:
    """Writes on the page of a run which other one went on with its work."""
    first, _, rest = page_of(work_uri, run_id).partition("\n")
    page = f"{first}\n\nStarted again as run `{successor}`, which goes on with its work.\n{rest}"
    with suppress(ValueError, OSError):
        storage.write_bytes(storage.join(WorkUri(work_uri).notes(run_id), SUMMARY_FILE), page.encode())


def text_of(run: Any, work_uri: str, run_id: str, again: str) -> str:
    """The page as text, '' where there is none; one that is older than the run's notes is written anew first."""
    page = page_of(work_uri, run_id)
    try:
        notes = read_notes(work_uri, run_id) if page else []
        if page and not is_current(page, notes):
            serve = ((run.runtime_config and run.runtime_config.parameters) or {}).get("serve", "none")
            page = summarize(work_uri, run_id, run.state, again, follow_ups(0, serve))
            storage.write_bytes(storage.join(WorkUri(work_uri).notes(run_id), SUMMARY_FILE), page.encode())
    except (ValueError, OSError):
        notes = []
    return as_text(page, notes) if page else ""


def page_of(work_uri: str, run_id: str) -> str:
    """The summary's page; '' where it is not, or cannot be read from here."""
    try:
        return storage.read_bytes(storage.join(WorkUri(work_uri).notes(run_id), SUMMARY_FILE)).decode()
    except (ValueError, OSError):
        return ""


def failed(run: Any) -> list[str]:
    """Stages and drivers that failed and were not repeated with success."""
    return tasks(run, "FAILED")


def running(run: Any) -> list[str]:
    return tasks(run, "RUNNING")


def tasks(run: Any, state: str) -> list[str]:
    """Names of the stages, and of Kubeflow's own steps before them, without what wraps them.

    A step that is repeated is there twice: by its name, and as NAME(0), NAME(1) for each try.
    """
    details = (run.run_details and run.run_details.task_details) or []
    names = [task.display_name for task in details if task.state == state]
    return [name for name in dict.fromkeys(names) if not FRAMES.fullmatch(name) and not name.endswith(")")]
