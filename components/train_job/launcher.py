"""Trains on several nodes: one TrainJob for what is to be trained, submitted once, watched to its end.

The job's name follows from data, classes and settings. So a launcher that is retried finds the job that its predecessor
started. A job that failed is replaced by a new one, which goes on from the checkpoints.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import yaml
from kubeflow.trainer import TrainerClient
from kubernetes.client import ApiException

from components.train_job.follow import STEP, LogFollower
from components.train_job.manifest import Request, request
from must import storage
from must.cli import call
from must.model.bundle import DESCRIPTION_FILE, load_description
from must.names import listed
from must.run.notes import noted
from must.run.training import job_values, origin

POLL = 5.0  # seconds between looks at the job
PATIENCE = 600.0  # seconds without an answer of the API server after which the launcher gives up; the job runs on
DRAIN = 10.0  # seconds for what is left of the log of a job that is over
LINES = 30  # of a failed job's log
PREEMPTED = 75


def train_on_nodes(
    work_uri: str,
    index_sha256: str,
    classifier: str,
    output: str,
    nodes: dict[str, Any],
    init: str = "",
    preset: str = "",
    settings: dict[str, Any] | None = None,
    epochs: int = 0,
    tensorboard_uri: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains, or attaches to the job that trains. Returns the run's summary, and what the bundle tells of its origin.

    Exits with 1 and the job's last lines and events when it fails, with 75 when it is stopped itself.
    """
    values = job_values(work_uri, index_sha256, classifier, init, preset, settings or {}, epochs)
    key = values["checkpoints"].rsplit("/", 1)[-1]
    job = storage.join(work_uri, "jobs", key)
    with noted(work_uri, "train", values["checkpoints"]) as note:
        call("train", prepare, job, values, classifier, storage.join(tensorboard_uri, key) if tensorboard_uri else "")
        logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns at length when it cannot read a version
        Launch(TrainerClient(), request(f"must-{key}", nodes, job), job, int(nodes["timeout"])).run()
        copy_bundle(storage.join(job, "bundle"), output)
        summary = load_description(output).provenance["summary"]
        note.result = f"{summary['steps']:,} steps on {int(nodes['nodes'])} nodes, {summary['images_per_s']} images/s"
    return summary, origin(output)


def prepare(job: str, values: dict[str, Any], classifier: str, curves: str) -> None:
    """What the nodes read: they see no file of this pod."""
    weights = storage.join(job, "classifier.safetensors")
    storage.write_bytes(weights, storage.read_bytes(classifier))
    content = {"train": {**values, "classifier": weights}, "tensorboard": curves}
    storage.write_bytes(storage.join(job, "job.yaml"), yaml.safe_dump(content).encode())


class Launch:
    """One TrainJob from its start, or from where a launcher before left it, to its end."""

    def __init__(self, client: Any, wanted: Request, job: str, timeout: int) -> None:
        self.client, self.wanted, self.job, self.timeout = client, wanted, job, timeout
        self.name = wanted.name

    def run(self) -> None:
        previous = signal.signal(signal.SIGTERM, stop)
        follower = LogFollower(self.client, self.name, POLL / 2)
        try:
            state = self.submit_or_attach()
            follower.start()
            state = self.wait(state)
            follower.finish(DRAIN)
        except (StoppedError, TimeoutError, KeyboardInterrupt) as error:
            print(f"{error}; deleting the TrainJob {self.name}. Its checkpoints stay.", file=sys.stderr)
            self.delete()
            raise SystemExit(1 if isinstance(error, TimeoutError) else PREEMPTED) from None
        finally:
            follower.over.set()
            signal.signal(signal.SIGTERM, previous)
        if state.status == "Failed":
            self.report_failure()

    def submit_or_attach(self) -> Any:
        found = self.patiently(self.look)
        if found is not None and found.status == "Failed":
            print(f"the TrainJob {self.name} failed before; starting it again from its checkpoints", flush=True)
        elif found is not None and found.status == "Complete" and not self.has_bundle():
            print(f"the TrainJob {self.name} is complete, but its model is gone; training again", flush=True)
        elif found is not None:
            print(f"attached to the TrainJob {self.name} ({found.status})", flush=True)
            return found
        if found is not None:
            self.delete()
            self.wait_until_gone()
        try:
            wanted = self.wanted
            self.client.train(runtime=wanted.runtime, trainer=wanted.trainer, options=wanted.options)
            print(f"submitted the TrainJob {self.name}: {wanted.trainer.num_nodes} nodes", flush=True)
        except RuntimeError as error:
            if status_of(error) != 409:
                explain(error, f"the TrainJob {self.name} could not be submitted")
            print(f"attached to the TrainJob {self.name}, which another launcher has just submitted", flush=True)
        return self.patiently(self.look)

    def wait(self, state: Any) -> Any:
        """Until the job is over. Raises TimeoutError."""
        while state is None or state.status not in ("Complete", "Failed"):
            if state is None:
                raise SystemExit(f"the TrainJob {self.name} was deleted by somebody else; its checkpoints stay")
            age = (datetime.now(UTC) - state.creation_timestamp).total_seconds()
            if self.timeout and age > self.timeout:
                raise TimeoutError(f"not done after {self.timeout} s")
            time.sleep(POLL)
            state = self.patiently(self.look)
        return state

    def look(self) -> Any:
        """The job, or None if there is none."""
        try:
            return self.client.get_job(self.name)
        except RuntimeError as error:
            if status_of(error) == 404:
                return None
            if status_of(error) in (401, 403):
                explain(error, f"the TrainJob {self.name} cannot be read")
            raise

    def patiently(self, action: Callable[[], Any]) -> Any:
        """`action`, repeated while the API server does not answer."""
        began = time.monotonic()
        while True:
            try:
                return action()
            except (RuntimeError, TimeoutError) as error:
                if time.monotonic() - began > PATIENCE:
                    explain(error, f"the API server gave no answer for {PATIENCE:g} s; the TrainJob runs on")
                time.sleep(POLL)

    def delete(self) -> None:
        with suppress(RuntimeError):  # it may be gone
            self.client.delete_job(self.name)

    def wait_until_gone(self) -> None:
        for _ in range(60):
            if self.patiently(self.look) is None:
                return
            time.sleep(POLL)
        raise SystemExit(f"the TrainJob {self.name} does not go away; delete it: kubectl delete trainjob {self.name}")

    def has_bundle(self) -> bool:
        return storage.exists(storage.join(self.job, "bundle", DESCRIPTION_FILE))

    def condition(self) -> str:
        """Why the controller calls the job failed, such as its deadline; the SDK does not pass it on."""
        api = self.client.backend
        with suppress(ApiException):
            return failed_condition(
                api.custom_api.get_namespaced_custom_object(
                    "trainer.kubeflow.org", "v1alpha1", api.namespace, "trainjobs", self.name
                )
            )
        return ""

    def report_failure(self) -> NoReturn:
        """The job's last lines and what Kubernetes noted about it."""
        lines, events = ["(no log)"], ["(no events)"]
        with suppress(RuntimeError, TimeoutError):
            lines = list(self.client.get_job_logs(self.name, step=STEP))[-LINES:] or lines
        with suppress(RuntimeError, TimeoutError):
            found = self.client.get_job_events(self.name)[-LINES:]
            events = [f"{e.involved_object_kind} {e.involved_object_name}: {e.reason}: {e.message}" for e in found]
        text = [
            f"the TrainJob {self.name} failed{self.condition()}. Last lines of rank 0:",
            *(f"  {line}" for line in lines),
        ]
        text += ["Events:", *(f"  {event}" for event in events or ["(no events)"])]
        print("\n".join([*text, "A retry goes on from the newest checkpoint."]), file=sys.stderr, flush=True)
        raise SystemExit(1)


def failed_condition(job: dict[str, Any]) -> str:
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == "Failed":
            return f" ({condition.get('reason', '')}: {condition.get('message', '')})"
    return ""


class StoppedError(BaseException):  # not Exception: the SDK turns whatever is raised inside a call into its own error
    pass


def stop(number: int, frame: object) -> None:
    raise StoppedError("stopped by SIGTERM")


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind one of the SDK's errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApiException):
            return cause.status
        cause = cause.__cause__
    return None


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
    hint = {403: "; give the service account the role in deploy/", 404: "; is Kubeflow Trainer installed?"}
    print(f"must train: {what} ({reason}{detail}{hint.get(status or 0, '')})", file=sys.stderr)
    raise SystemExit(2 if status in (400, 401, 403, 404, 422) else 1) from error


def copy_bundle(uri: str, folder: str) -> None:
    for name in call("train", listed, uri):
        storage.download(storage.join(uri, name), storage.join(folder, name))
