"""Waits for the end of a run on Kubeflow Pipelines and prints its summary."""

import re
import sys
import time
from typing import Any, NamedTuple

from must.base import storage
from must.base.text import printable
from must.runtime.summary import Summary, summarize
from must_components.cluster import failures, is_refused
from must_pipeline.server.api import Kfp, api_errors, connect

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
GOOD = ("SUCCEEDED", "SKIPPED")
POLL = 15.0  # seconds
FAILURES_REPORTED = 3  # failures of one stage after which a line is printed
WATCH_TIMEOUT = 10  # seconds for an answer of Kubernetes' API
SERVER_TIMEOUT = 900.0  # seconds without an answer after which waiting is given up
FRAMES = re.compile(  # tasks that only wrap stages
    r"executor|root|(exit-handler|condition|condition-branches|for-loop)-\d+(\.onExit)?|iteration-(iterations|item)|must-[a-z0-9]{5}"
)


class Ending(NamedTuple):
    code: int  # 0, or 1 for a run that failed or whose workflow is gone
    lost: bool = False  # it was stopped from outside, but not by a person: it may be started again


def wait(kfp: Kfp, run_id: str, work_uri: str, again: str) -> Ending:
    """How the run ended, once it is over. Raises TransientError: no answer for SERVER_TIMEOUT seconds.

    The notes of the stages at `work_uri` are summarized if this machine can read them. `again` starts the run again."""
    kubernetes, printed, missed, reported = connect(), "", 0, set[str]()
    latest: dict[str, Any] = {}  # the workflow as it was read last
    while True:
        run = get_run_with_retry(kfp, run_id)
        state = run.state or "PENDING"
        # Kubeflow has a step of its own before each stage.
        coming = (name.removesuffix("-driver") for name in list_stages(run, "RUNNING"))
        status = " ".join([state.lower(), *dict.fromkeys(name for name in coming if not FRAMES.fullmatch(name))])
        if status != printed:
            printed = status
            say(status)
        workflow = find_workflow(kubernetes, kfp.namespace or "kubeflow", run_id)
        latest = workflow or latest
        if state in OVER:
            summary = summarize(work_uri, run_id, state, again)
            report(run, state, summary, failures(latest))
            lost = summary.failure in ("stopped", "silent") and not was_terminated(run)
            return Ending(int(state not in GOOD), state not in GOOD and lost)
        missed, trouble = missed + 1 if latest and workflow == {} else 0, ""
        if (stage := report_failures(run, latest, reported)) is not None:
            trouble = (
                f"this run cannot succeed: Kubernetes rejects the pods of {stage}; retries may last hours. "
                "Correct it, terminate the run in Kubeflow's page, and start it again"
            )
        elif missed > 1:  # at first the run's last state may not have arrived yet
            trouble = (
                f"the workflow of the run {run_id} was deleted: Kubeflow keeps the state {state.lower()}. "
                "Start it again"
            )
        if trouble:
            print(f"{trouble}: {again}", file=sys.stderr)
            return Ending(1)
        time.sleep(POLL)


def get_run_with_retry(kfp: Kfp, run_id: str) -> Any:
    """The run; repeats the request until the server answers."""

    def ask() -> Any:
        with api_errors(kfp.host):
            return kfp.runs.run_service_get_run(run_id)

    return storage.repeat(kfp.host, ask, timeout=SERVER_TIMEOUT)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def report_failures(run: Any, workflow: dict[str, Any], reported: set[str]) -> str | None:
    """Prints once for each stage that it has failed for the third time, and why (unknown without permission to read the
    workflow). Returns a stage that can never start."""
    tries = [re.sub(r"\(\d+\)$", "", name) for name in list_tasks(run, "FAILED") if name.endswith(")")]
    stages = failures(workflow) or {name: [""] * tries.count(name) for name in tries if not FRAMES.fullmatch(name)}
    for stage, messages in stages.items():
        if len(messages) >= FAILURES_REPORTED and stage not in reported:
            reported.add(stage)
            reason = messages[-1] or "the workflow's events say why (kubectl describe workflow)"
            say(f"{stage} failed {len(messages)} times: {printable(reason, 1000)}")
            if is_refused(reason):
                return stage
    return None


def report(run: Any, state: str, summary: Summary, messages: dict[str, list[str]]) -> None:
    """Prints how the run ended; without notes that can be read, what the server says."""
    if state not in GOOD:
        if was_terminated(run):
            print("the run was ended by a person")
        elif not summary.table:
            print(f"failed: {', '.join(list_stages(run, 'FAILED')) or 'no stage has begun'}")
            for stage, reasons in messages.items():
                print(f"{stage}: {printable(reasons[-1], 1000)}")
    page = summary.to_text() if summary.table else "The page about it is the artifact of the stage summary."
    print(f"\n{page}", flush=True)


def was_terminated(run: Any) -> bool:
    return any(entry.state in ("CANCELING", "CANCELED") for entry in run.state_history or [])


def list_tasks(run: Any, state: str) -> list[str]:
    """Kubeflow's names of the tasks in that state; of the tries of a repeated step NAME(0), NAME(1), ..."""
    details = (run.run_details and run.run_details.task_details) or []
    return [task.display_name for task in details if task.state == state]


def list_stages(run: Any, state: str) -> list[str]:
    """The stages, and Kubeflow's own steps before them, without the tasks that wrap them, and without tries."""
    names = dict.fromkeys(list_tasks(run, state))
    return [name for name in names if not FRAMES.fullmatch(name) and not name.endswith(")")]


def find_workflow(kubernetes: Any, namespace: str, run_id: str) -> dict[str, Any] | None:
    """The run's workflow, by Kubernetes' API of `connect`: Kubeflow Pipelines reports neither its deletion nor why its
    pods fail. {}: there is none, perhaps as this is another cluster; None: there is no answer, or no permission."""
    if kubernetes is None:
        return None
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        items = kubernetes.list_namespaced_custom_object(
            "argoproj.io", "v1alpha1", namespace, "workflows", label_selector=f"pipeline/runid={run_id}",
            _request_timeout=WATCH_TIMEOUT,
        )["items"]  # fmt: skip
    except (ApiException, HTTPError, OSError):
        return None
    return next(iter(items), {})
