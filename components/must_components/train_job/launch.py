"""Submits one TrainJob per training and waits for its end; reports why it failed.

A retried launcher finds the job that its predecessor started. A failed job is replaced by a new one, which resumes from
the checkpoints. The exit code says whether a retry makes sense.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import yaml
from kubernetes.client import ApiException

from must.base import storage
from must.base.exits import BUG, HELD, PREEMPTED, WRONG_INPUT
from must.base.files import DESCRIPTION_FILE
from must.base.lock import RUN_ID
from must.runtime.keepalive import SILENCE, keep_alive
from must.runtime.places import JobUri
from must_components.train_job.follow import INDEX, LogFollower
from must_components.train_job.jobs import NO_ANSWER, Jobs
from must_components.train_job.manifest import JOB_URI, Request

POLL_JOB = 5.0  # seconds between requests for the job's state
API_TIMEOUT = 600.0  # seconds without a response of the API server after which the launcher ends; the job continues
DRAIN = 10.0  # seconds to read the end of a finished job's log
GONE = 300.0  # seconds for a deleted job's pods to stop: they may save a checkpoint first
LINES = 30  # of a failed job's log and of its events


class Launch:
    """One TrainJob, from its submission, or from an earlier launcher's, to its end."""

    def __init__(self, jobs: Jobs, request: Request, job: JobUri, timeout: int, model: str = "") -> None:
        self.jobs, self.request, self.job, self.timeout, self.model = jobs, request, job, timeout, model
        self.name: str = request.name
        self.workflow = self.run_name = ""
        with suppress(ApiException, *NO_ANSWER):  # read now: after SIGTERM there is no time
            self.workflow = jobs.workflow()
            self.run_name = jobs.run_name(self.workflow) if self.workflow else ""

    def run(self) -> None:
        previous = signal.signal(signal.SIGTERM, stop)
        follower = LogFollower(self.jobs, self.name, POLL_JOB / 2)
        try:
            with keep_alive(self.job.heartbeat):
                self.submit_or_attach()
                follower.start()
                outcome, reason = self.wait()
                follower.finish(DRAIN)
        except StoppedError:
            self.exit_on_sigterm()
        except (TimeoutError, KeyboardInterrupt) as error:
            print(
                f"{error or 'interrupted'}; deleting the TrainJob {self.name}. Its checkpoints stay.", file=sys.stderr
            )
            with suppress(ApiException, *NO_ANSWER):
                self.delete()
            raise SystemExit(BUG if isinstance(error, TimeoutError) else PREEMPTED) from None
        finally:
            follower.over.set()
            signal.signal(signal.SIGTERM, previous)
        if outcome == "Failed":
            report(self.jobs, self.name, reason, follower.last)

    def exit_on_sigterm(self) -> NoReturn:
        """Exits within half a second. Deletes the job if the run is stopped, but not if only this pod is."""
        with suppress(ApiException, *NO_ANSWER):
            if self.workflow and self.jobs.is_over(self.workflow):
                self.delete()
                print(
                    f"the run is being stopped: deleted the TrainJob {self.name}. Its checkpoints stay.",
                    file=sys.stderr,
                )
                raise SystemExit(PREEMPTED) from None
        print(
            f"stopped by SIGTERM; the TrainJob {self.name} continues; it stops by itself after {SILENCE / 60:g} "
            "minutes without a launcher",
            file=sys.stderr,
        )
        raise SystemExit(PREEMPTED) from None

    def submit_or_attach(self) -> None:
        job = self.current_job()
        if job is not None:
            outcome, _ = self.with_retry(partial(self.jobs.outcome, job))
            if "deletionTimestamp" in job["metadata"]:
                print(f"the TrainJob {self.name} is being deleted; waiting for its end", flush=True)
            elif outcome == "Failed":
                print(f"the TrainJob {self.name} failed before; starting it again from its checkpoints", flush=True)
            elif outcome == "Complete" and not storage.exists(storage.join(self.job.bundle, DESCRIPTION_FILE)):
                print(f"the TrainJob {self.name} is complete, but its model is gone; training again", flush=True)
            else:
                self.check_patches(job)
                self.mark(job)
                print(f"attached to the TrainJob {self.name} ({outcome or 'Running'})", flush=True)
                return
            self.with_retry(self.delete)
            self.wait_until_gone()
        try:
            self.jobs.create(self.request)
            print(f"submitted the TrainJob {self.name}: {self.request.trainer.num_nodes} nodes", flush=True)
        except RuntimeError as error:
            if status_of(error) != 409:
                explain(error, f"the TrainJob {self.name} could not be submitted")
            print(f"attached to the TrainJob {self.name}, which another launcher has just submitted", flush=True)
        created = self.current_job()
        if created is not None:
            self.check_patches(created)
            self.mark(created)

    def mark(self, job: dict[str, Any]) -> None:
        if run := os.environ.get(RUN_ID, ""):
            self.with_retry(partial(self.jobs.mark, job, run, self.run_name, self.model))

    def check_patches(self, job: dict[str, Any]) -> None:
        """Trainer 2.0 and 2.1 have no runtimePatches, and Kubernetes silently drops unknown fields."""
        if "runtimePatches" not in job["spec"]:
            self.with_retry(self.delete)
            print(
                f"must train: the TrainJob {self.name} came back without runtimePatches (service account, pool, "
                "volumes) and was deleted: Kubeflow Trainer 2.2 or newer is needed",
                file=sys.stderr,
            )
            raise SystemExit(WRONG_INPUT)

    def wait(self) -> tuple[str, str]:
        """Waits until the job is over: Complete or Failed, and why. Raises TimeoutError."""
        queued = False
        while (job := self.current_job()) is not None:
            outcome, reason = self.with_retry(partial(self.jobs.outcome, job))
            if outcome in ("Complete", "Failed"):
                return outcome, reason
            if outcome == "Suspended" and not queued:
                print(f"the TrainJob {self.name} waits in its queue; its time does not count yet", flush=True)
            queued = outcome == "Suspended"
            if self.timeout and not queued and seconds_of(job) > self.timeout:
                raise TimeoutError(f"not done after {self.timeout} s")
            time.sleep(POLL_JOB)
        print(f"the TrainJob {self.name} was deleted by another program; its checkpoints stay", file=sys.stderr)
        raise SystemExit(BUG)

    def current_job(self) -> dict[str, Any] | None:
        """The job, or None if there is none. Exits with 2 for a job of another folder, and does not change it."""
        job = self.with_retry(partial(self.jobs.get, self.name))
        if job is not None:
            uri = (job["metadata"].get("annotations") or {}).get(JOB_URI)
            if uri != self.job.uri:
                print(
                    f"must train: there is a TrainJob {self.name} for another place ({uri or 'no annotation'}, not "
                    f"{self.job.uri}); it was not changed. Delete it, then retry.",
                    file=sys.stderr,
                )
                raise SystemExit(WRONG_INPUT)
        return job

    def with_retry(self, action: Callable[[], Any]) -> Any:
        """`action`, repeated while the API server does not answer."""
        try:
            return storage.repeat(f"the TrainJob {self.name}", action, is_retried, timeout=API_TIMEOUT)
        except storage.UnreachableError as error:
            assert error.__cause__ is not None
            explain(error.__cause__, f"the API server gave no answer for {API_TIMEOUT:g} s; the TrainJob runs on")
        except (ApiException, *NO_ANSWER) as error:
            explain(error, f"the TrainJob {self.name} cannot be read")

    def delete(self) -> None:
        """Deletes this folder's job, if there is one."""
        job = self.jobs.get(self.name)
        if job is not None and (job["metadata"].get("annotations") or {}).get(JOB_URI) == self.job.uri:
            self.jobs.delete(job)

    def wait_until_gone(self) -> None:
        began = time.monotonic()
        while self.current_job() is not None:
            if time.monotonic() - began > GONE:
                print(
                    f"the TrainJob {self.name} still exists; run: kubectl delete trainjob {self.name}", file=sys.stderr
                )
                raise SystemExit(BUG)
            time.sleep(POLL_JOB)


class StoppedError(BaseException):  # not Exception: the SDK catches every Exception and raises its own
    pass


def stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # SIGTERM may come twice
    raise StoppedError


def is_retried(error: BaseException) -> bool:
    return isinstance(error, (ApiException, *NO_ANSWER)) and status_of(error) not in (401, 403)


def seconds_of(job: dict[str, Any]) -> float:
    """Seconds since the job was created, or last left its queue."""
    began = job["metadata"]["creationTimestamp"]
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == "Suspended" and condition["status"] == "False":
            began = condition["lastTransitionTime"]
    return (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds()


def report(jobs: Jobs, name: str, reason: str, last_lines: Sequence[str]) -> NoReturn:
    """Prints the last lines of the node that failed first, and Kubernetes' events. Exits with the nodes' code.

    `last_lines` are of rank 0's log, in case its pod was deleted.
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
