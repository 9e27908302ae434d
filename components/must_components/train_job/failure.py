"""Why a TrainJob failed, for people, and the exit code that says whether trying again makes sense."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import yaml
from kubernetes.client import ApiException

from must.base.exits import BUG, HELD, PREEMPTED, WRONG_INPUT
from must_components.train_job.follow import INDEX
from must_components.train_job.jobs import NO_ANSWER, Jobs

LINES = 30  # of a failed job's log, and of its events


def report(jobs: Jobs, name: str, why: str, followed: Sequence[str]) -> NoReturn:
    """Prints the last lines of the node that failed first, and what Kubernetes noted. Exits with the nodes' code.

    Args:
        followed: the last lines of rank 0 that were seen, for pods that are gone with their logs.
    """
    ended, lines, title = [], list(followed), "rank 0"
    events = ["(no events)"]
    with suppress(ApiException, *NO_ANSWER):
        ended = endings(jobs, name)
        if ended:
            pod = ended[0][2]
            lines = jobs.log(pod.metadata.name)
            title = f"node {pod.metadata.labels.get(INDEX, '?')}, exit code {ended[0][1]}"
    with suppress(ApiException, *NO_ANSWER):
        events = jobs.events(name)[-LINES:] or events
    text = [f"the TrainJob {name} failed ({why}). Last lines of {title}:"]
    text += [f"  {line}" for line in lines[-LINES:] or ["(no log)"]]
    text += ["Events:", *(f"  {event}" for event in events)]
    code = exit_code([code for _, code, _ in ended])
    if code != WRONG_INPUT:
        text.append("A retry goes on from the newest checkpoint.")
    print("\n".join(text), file=sys.stderr, flush=True)
    raise SystemExit(code)


def endings(jobs: Jobs, name: str) -> list[tuple[Any, int, Any]]:
    """(time, exit code, pod) of the containers that failed, what explains it first: not those that left with a peer."""
    found = []
    for pod in jobs.pods(name):
        for status in pod.status.container_statuses or []:
            ended = status.state.terminated or status.last_state.terminated
            if ended and ended.exit_code:
                found.append((ended.finished_at or pod.metadata.creation_timestamp, ended.exit_code, pod))
    return sorted(found, key=lambda item: (item[1] == PREEMPTED, item[0]))


def exit_code(codes: list[int]) -> int:
    """2, the input is wrong, or 73, another run is at work, whatever else happened; 75, all left with their work saved;
    else 1."""
    for code in (WRONG_INPUT, HELD):
        if code in codes:
            return code
    return PREEMPTED if codes and set(codes) == {PREEMPTED} else BUG


def explain(error: BaseException, what: str) -> NoReturn:
    """One line with what the API server said. Exits with 2 for what must be mended first, else with 1."""
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
    if status == 404 or "clustertrainingruntimes" in detail:  # the SDK looks there for what is not in the namespace
        hint = "; is Kubeflow Trainer 2 installed, and deploy/training-runtime.yaml applied?"
    elif status == 403:
        hint = "; give the service account the role in deploy/trainjobs.yaml"
    print(f"must train: {what} ({reason}{detail}{hint})", file=sys.stderr)
    raise SystemExit(WRONG_INPUT if status in (400, 401, 403, 404, 422) else BUG) from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error's cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApiException):
            return cause.status
        cause = cause.__cause__
    return None
