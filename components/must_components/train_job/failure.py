"""Reports why a TrainJob failed, and exits with a code that says whether a retry makes sense."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import yaml
from kubernetes.client import ApiException

from must.base.exits import BUG, HELD, PREEMPTED, WRONG_INPUT
from must_components.train_job.follow import INDEX
from must_components.train_job.jobs import NO_ANSWER, Jobs

LINES = 30  # of a failed job's log and of its events


def report(jobs: Jobs, name: str, reason: str, last_lines: Sequence[str]) -> NoReturn:
    """Prints the last lines of the node that failed first, and Kubernetes' events. Exits with the nodes' code.

    Args:
        last_lines: the last lines of rank 0's log, in case its pod was deleted.
    """
    failed, lines, title = [], list(last_lines), "rank 0"
    events = ["(no events)"]
    with suppress(ApiException, *NO_ANSWER):
        failed = endings(jobs, name)
        if failed:
            pod = failed[0][2]
            lines = jobs.log(pod.metadata.name)
            title = f"node {pod.metadata.labels.get(INDEX, '?')}, exit code {failed[0][1]}"
    with suppress(ApiException, *NO_ANSWER):
        events = jobs.events(name)[-LINES:] or events
    text = [f"the TrainJob {name} failed ({reason}). Last lines of {title}:"]
    text += [f"  {line}" for line in lines[-LINES:] or ["(no log)"]]
    text += ["Events:", *(f"  {event}" for event in events)]
    code = exit_code([code for _, code, _ in failed])
    if code != WRONG_INPUT:
        text.append("A retry goes on from the newest checkpoint.")
    print("\n".join(text), file=sys.stderr, flush=True)
    raise SystemExit(code)


def endings(jobs: Jobs, name: str) -> list[tuple[Any, int, Any]]:
    """(time, exit code, pod) of the failed containers, by time; those that ended because a peer failed come last."""
    failed = []
    for pod in jobs.pods(name):
        for status in pod.status.container_statuses or []:
            terminated = status.state.terminated or status.last_state.terminated
            if terminated and terminated.exit_code:
                failed.append((terminated.finished_at or pod.metadata.creation_timestamp, terminated.exit_code, pod))
    return sorted(failed, key=lambda item: (item[1] == PREEMPTED, item[0]))


def exit_code(codes: list[int]) -> int:
    """2 or 73 if any node has it (wrong input; another run has the lock); 75 if all nodes saved their work; else 1."""
    for code in (WRONG_INPUT, HELD):
        if code in codes:
            return code
    return PREEMPTED if codes and set(codes) == {PREEMPTED} else BUG


def explain(error: BaseException, message: str) -> NoReturn:
    """Prints one line with the API server's error. Exits with 2 if a person has to correct something, else with 1."""
    cause: Any = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    status = status_of(error)
    reason = f"{status} {cause.reason}" if status else f"{type(cause).__name__}: {cause}"
    detail = ""
    if status:
        with suppress(ValueError, AttributeError, TypeError):
            detail = f": {yaml.safe_load(cause.body)['message']}"
    hint = ""
    if status == 404 or "clustertrainingruntimes" in detail:  # where the SDK looks if the namespace has no such runtime
        hint = "; is Kubeflow Trainer 2 installed, and deploy/training-runtime.yaml applied?"
    elif status == 403:
        hint = "; give the service account the role in deploy/trainjobs.yaml"
    print(f"must train: {message} ({reason}{detail}{hint})", file=sys.stderr)
    raise SystemExit(WRONG_INPUT if status in (400, 401, 403, 404, 422) else BUG) from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error's cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApiException):
            return cause.status
        cause = cause.__cause__
    return None
