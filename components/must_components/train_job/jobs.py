"""The API server's side of a TrainJob: to create, read and delete it, and to read what became of its pods.

The SDK builds and submits the object. What it reads back leaves out annotations, owners and the reasons of conditions,
and it gives up on resources whose device it does not know; so reading and deleting go to the API itself.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from kubeflow.trainer import TrainerClient
from kubernetes import watch
from kubernetes.client import ApiException, V1DeleteOptions, V1Preconditions
from urllib3.exceptions import HTTPError

from must_components.argo import is_stopped
from must_components.train_job.manifest import MODEL, NODE, RUN, RUN_NAME, Request

TRAINER_API = ("trainer.kubeflow.org", "v1alpha1")
JOB_SET = ("jobset.x-k8s.io", "v1alpha2")
WORKFLOW = ("argoproj.io", "v1alpha1")
REQUEST_TIMEOUT = (5, 30)  # seconds for connecting, and for an answer
NO_ANSWER = (HTTPError, OSError)


class Jobs:
    """TrainJobs of the launcher's namespace. Every method may raise ApiException, or one of NO_ANSWER."""

    def __init__(self) -> None:
        self.client = TrainerClient()
        backend: Any = self.client.backend
        self.custom, self.core, self.namespace = backend.custom_api, backend.core_api, backend.namespace

    def create(self, wanted: Request) -> None:
        """Raises RuntimeError with the API server's error as its cause."""
        self.client.train(runtime=wanted.runtime, trainer=wanted.trainer, options=wanted.options)

    def get(self, name: str) -> dict[str, Any] | None:
        """The TrainJob, or None if there is none."""
        return self.read(TRAINER_API, "trainjobs", name)

    def delete(self, job: dict[str, Any]) -> None:
        """This very job, not one that has its name by now; it is there until its JobSet and all its pods are gone.

        One that runs is suspended first, which ends its pods: Trainer 2.3 makes the JobSet of a job anew while that is
        being deleted, and a suspended one starts no pods.

        Deleted in the background, as the SDK does it, it would be gone at once, and a new job of its name would find
        the old JobSet: Trainer builds none beside it, and reports the old one's failure as the new job's.
        """
        options = V1DeleteOptions(
            propagation_policy="Foreground", preconditions=V1Preconditions(uid=job["metadata"]["uid"])
        )
        name = job["metadata"]["name"]
        self.suspend(job)
        try:
            self.custom.delete_namespaced_custom_object(
                *TRAINER_API, self.namespace, "trainjobs", name, body=options, _request_timeout=REQUEST_TIMEOUT
            )
        except ApiException as error:
            if error.status not in (404, 409):  # it is gone, or another one by now
                raise

    def suspend(self, job: dict[str, Any]) -> None:
        """Not one that is over. A job that may not be suspended (an older role of ours) is deleted all the same."""
        conditions = job.get("status", {}).get("conditions", [])
        over = any(one["status"] == "True" and one["type"] in ("Complete", "Failed") for one in conditions)
        if over or job["spec"].get("suspend") or "deletionTimestamp" in job["metadata"]:
            return
        where = (*TRAINER_API, self.namespace, "trainjobs", job["metadata"]["name"])
        patch = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": True}}
        with suppress(ApiException):
            self.custom.patch_namespaced_custom_object(*where, patch, _request_timeout=REQUEST_TIMEOUT)

    def mark(self, job: dict[str, Any], run: str, name: str, model: str) -> None:
        """Says on the job which run waits for it, its id and its name, and for which model. Without the right to it,
        nothing is said."""
        where = (*TRAINER_API, self.namespace, "trainjobs", job["metadata"]["name"])
        labels = {RUN: run, MODEL: model.rstrip("-._") or None}  # Kubernetes' rule for a label's end
        patch = {"uid": job["metadata"]["uid"], "labels": labels, "annotations": {RUN_NAME: name}}
        with suppress(ApiException):
            self.custom.patch_namespaced_custom_object(*where, {"metadata": patch}, _request_timeout=REQUEST_TIMEOUT)

    def outcome(self, job: dict[str, Any]) -> tuple[str, str]:
        """Complete, Failed, Suspended or '' while it runs, and why.

        An ending that was copied from a JobSet of another, earlier job of this name is none.
        """
        conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        for kind in ("Complete", "Failed"):
            if kind in conditions and self.is_own(job, conditions[kind]):
                return kind, f"{conditions[kind].get('reason', '')}: {conditions[kind].get('message', '')}"
        return ("Suspended", "") if job["spec"].get("suspend") else ("", "")

    def is_own(self, job: dict[str, Any], condition: dict[str, Any]) -> bool:
        job_set = self.read(JOB_SET, "jobsets", job["metadata"]["name"])
        if job_set is None:  # deleted at the deadline, or the old one that has just gone
            return moment(condition["lastTransitionTime"]) >= moment(job["metadata"]["creationTimestamp"])
        owners = [owner["uid"] for owner in job_set["metadata"].get("ownerReferences", [])]
        return job["metadata"]["uid"] in owners

    def pods(self, name: str) -> list[Any]:
        """The nodes' pods, the newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}"
        pods = self.core.list_namespaced_pod(
            self.namespace, label_selector=selector, _request_timeout=REQUEST_TIMEOUT
        ).items
        return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp, reverse=True)

    def log(self, pod: str) -> list[str]:
        text = self.core.read_namespaced_pod_log(pod, self.namespace, container=NODE, _request_timeout=REQUEST_TIMEOUT)
        return str(text).splitlines()

    def follow(self, pod: str) -> Iterator[str]:
        """The log from its start, line by line, until the container ends or the connection does."""
        read = self.core.read_namespaced_pod_log
        yield from watch.Watch().stream(read, name=pod, namespace=self.namespace, container=NODE, follow=True)

    def events(self, name: str) -> list[str]:
        """What Kubernetes noted about the job, what queues it, its JobSet and its pods, the oldest first."""
        found = [
            (event.last_timestamp or event.first_timestamp or event.event_time, event.involved_object, event)
            for event in self.core.list_namespaced_event(self.namespace, _request_timeout=REQUEST_TIMEOUT).items
        ]
        ours = [item for item in found if item[0] and name in item[1].name]
        ours.sort(key=lambda item: item[0])
        return [f"{about.kind} {about.name}: {event.reason}: {event.message}" for _, about, event in ours]

    def workflow(self) -> str:
        """The Argo workflow that this pod belongs to, or '' outside one."""
        pod = os.environ.get("KFP_POD_NAME", "")
        if not pod:
            return ""
        labels = (
            self.core.read_namespaced_pod(pod, self.namespace, _request_timeout=REQUEST_TIMEOUT).metadata.labels or {}
        )
        return labels.get("workflows.argoproj.io/workflow", "")

    def run_name(self, workflow: str) -> str:
        found = self.read(WORKFLOW, "workflows", workflow) or {"metadata": {}}
        return str((found["metadata"].get("annotations") or {}).get("pipelines.kubeflow.org/run_name", ""))

    def is_over(self, workflow: str) -> bool:
        """Whether the run is being stopped or was deleted, as opposed to this pod alone."""
        found = self.read(WORKFLOW, "workflows", workflow)
        return found is None or is_stopped(found)

    def read(self, group: tuple[str, str], plural: str, name: str) -> dict[str, Any] | None:
        read = self.custom.get_namespaced_custom_object
        try:
            found: dict[str, Any] = read(*group, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found


def moment(text: str) -> datetime:
    """The moment of a time as Kubernetes writes it."""
    return datetime.fromisoformat(text)
